"""Weights stored as views of mapped files: checkpoint files, and files of our own in a store directory.

May import from ``stores`` and the rooms below it.
"""
