"""Rules about declared inputs, outputs and defaults. Imports rules.base and below."""
