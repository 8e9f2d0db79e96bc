"""A linter for modular pipelines of diffusers. Reads source: imports neither torch nor diffusers nor what it lints."""
