"""Group offloading: weights stay in host memory or on disk and come to the device as they are used.

Its rooms, from what users call down to what knows none of the others. A room imports only from those below it::

    api         what users call
    hooks       the hook on each module, and the one file that imports ``diffusers.hooks``
    runtime     what happens while a model runs
    transfer    copies from host memory and disk to the device
    planning    what is cached on the device within a budget, and how long a step takes
    model       what a model is made of: tensors, units, groups
    stores      host memory and files that weights are stored in
    memory      device and host memory, and their limits
    modes       the torch modes that the engine works in
    policy      the caller's settings
    formatting  sizes and tables for people
"""
