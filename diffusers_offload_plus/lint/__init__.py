"""The linter for modular pipelines of diffusers. Reads source: imports neither torch nor diffusers nor what it lints.

The rooms, from the ground up; each may import those before it: core, reading, resolution, evaluation, project,
rules.base, the topics of rules, rules, settings, analysis, introspection, running, reporting, checklist, fixes.
"""
