"""Rules about files, imports, model families, assembled blocks and tests. Imports rules.base and below."""
