"""Rules about guidance, which is what guiders do. Imports rules.base and below."""
