"""The conversion checklist of a model family. Imports rules, analysis, project and core."""
