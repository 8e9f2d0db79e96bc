"""A run: the request, the changed lines, the report. Imports introspection, analysis, settings and below."""
