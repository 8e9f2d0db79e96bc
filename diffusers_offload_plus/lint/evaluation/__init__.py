"""Values of expressions, worked out without running them: what blocks declare. Imports resolution and below."""
