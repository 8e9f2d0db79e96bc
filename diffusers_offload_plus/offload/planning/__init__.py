"""What is cached on the device within a budget, and how long a step takes: pure functions that move no tensor.

May import from ``model`` and the rooms below it.
"""
