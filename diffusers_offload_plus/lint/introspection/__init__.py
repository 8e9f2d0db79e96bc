"""What blocks declare at run time, asked in another process. Imports analysis, rules.base, project and below.

Used with ``--introspect`` only, since it runs the linted code.
"""
