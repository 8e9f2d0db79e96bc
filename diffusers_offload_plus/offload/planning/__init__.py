"""What is cached on the device within a budget, and how long a step takes: pure functions, no tensor is moved.

May import from ``model`` and the rooms below it.
"""
