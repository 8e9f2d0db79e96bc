"""Rules applied to files, in one process or several. Imports rules.base, project and below."""
