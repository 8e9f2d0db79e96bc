"""What decides which findings count: settings, comments, baselines. Imports rules.base, reading and core."""
