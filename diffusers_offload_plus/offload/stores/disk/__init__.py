"""Weights as views of mapped files: checkpoints that lie there already, and a directory of files of our own.

May import from ``stores`` and the rooms below it.
"""
