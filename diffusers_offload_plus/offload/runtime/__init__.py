"""What happens while a model runs: which group is on the device when, and what reads and writes it.

May import from ``groups`` and the rooms below it.
"""
