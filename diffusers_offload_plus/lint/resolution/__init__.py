"""Names followed to what they stand for, across modules and base classes. Imports reading."""
