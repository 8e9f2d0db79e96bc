"""The hook on each module, and the hooks of one model together. Only ``diffusers_api`` imports ``diffusers.hooks``.

May import from ``runtime`` and the rooms below it.
"""
