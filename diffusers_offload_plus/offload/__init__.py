"""Group offloading: weights stay in host memory or on disk and come to the device as they are used.

The rooms, from what users call down to what knows nothing of the others; a room imports only from those below it::

    api         what users call
    hooks       the hook on each module, and the one file that knows ``diffusers.hooks``
    runtime     what happens while a model runs
    transfer    copies from host memory and disk to the device
    planning    what stays on the device within a budget, as pure functions
    model       what a model is made of
    stores      host memory and files that weights are stored in
    memory      device and host memory, and their limits
    modes       the state that the engine works in, whatever the caller's
    policy      what the caller asked for
    formatting  sizes and tables for people
"""
