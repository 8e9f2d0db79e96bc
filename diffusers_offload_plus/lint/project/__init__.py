"""The linted files as rules see them: blocks, pipelines, and what their code does. Imports evaluation and below."""
