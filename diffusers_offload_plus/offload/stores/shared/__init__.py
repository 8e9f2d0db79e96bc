"""One host copy of equal weights for all processes of a machine; see docs/ranks.md.

May import from ``stores`` and the rooms below it.
"""
