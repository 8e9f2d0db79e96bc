"""What a rule is, and the questions that several rules ask. Imports core, and project and below."""
