"""The rules, a folder for each topic, and the registry, which imports all of them. Topics import rules.base."""
