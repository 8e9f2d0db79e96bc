"""Where weights are stored: packed in host memory, in files (``disk``), in memory that processes share (``shared``).

May import from ``memory`` and the rooms below it; ``disk`` and ``shared`` import from this folder, not the reverse.
"""
