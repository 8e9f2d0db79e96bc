"""Reports in each output format, and pages about rules. Imports running, rules.base and core."""
