"""One host copy of equal weights for all processes of a machine.

May import from ``stores`` and the rooms below it.
"""
