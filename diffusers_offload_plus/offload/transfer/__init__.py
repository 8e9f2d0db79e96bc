"""Copies from host memory and disk to the device, how long computing waited for them, and which tier a group is on.

May import from ``planning`` and the rooms below it.
"""
