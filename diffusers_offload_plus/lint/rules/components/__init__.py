"""Rules about components: who creates, declares, changes and runs them. Imports rules.base and below."""
