"""Device memory that engines share, host memory of the process, and the limits of both.

May import ``modes``, ``policy`` and ``formatting``.
"""
