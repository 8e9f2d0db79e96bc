"""What a run reports: settings, suppressing comments, baselines. Imports rules.base, reading and core."""
