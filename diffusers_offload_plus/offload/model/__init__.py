"""What a model is made of: plain tensors, the units it is cut into, the groups of its weights, its module tree.

May import from ``stores`` and the rooms below it.
"""
