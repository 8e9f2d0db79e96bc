"""Measurements. Nothing here is asserted: machines are shared and noisy, so medians and ratios are reported."""
