"""Device memory that engines share, host memory of the process, staging buffers, and the limits of all of these.

May import ``modes``, ``policy`` and ``formatting``.
"""
