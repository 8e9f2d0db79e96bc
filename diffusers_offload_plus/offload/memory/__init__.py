"""Device memory that engines share, host memory of the process, and the limits of both.

May import ``policy`` and ``formatting``.
"""
