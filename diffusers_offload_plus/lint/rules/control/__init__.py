"""Rules about what a block's ``__call__`` takes, skips and returns. Imports rules.base and below."""
