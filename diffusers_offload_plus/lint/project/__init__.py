"""The source model of the linter: a package as a whole, read and never run."""

from .blocks import Block, Declared
from .classes import ClassInfo
from .project import Project
from .source import Problem, Source

__all__ = ["Block", "ClassInfo", "Declared", "Problem", "Project", "Source"]
