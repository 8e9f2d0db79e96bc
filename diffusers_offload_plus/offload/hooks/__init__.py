"""The hook on each module and the hooks of one model together; ``diffusers_api`` alone imports ``diffusers.hooks``.

May import from ``runtime`` and the rooms below it.
"""
