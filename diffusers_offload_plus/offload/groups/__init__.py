"""One group of weights: where its parameters point, what was written to its device copy, who else holds it.

May import from ``transfer`` and the rooms below it.
"""
