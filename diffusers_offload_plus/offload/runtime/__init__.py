"""What happens while a model runs: which group is on the device when, and where its parameters point.

May import from ``transfer`` and the rooms below it.
"""
