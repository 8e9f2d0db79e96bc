"""Files as they are read: where they lie, their syntax trees, what their imports bind. Imports no other room."""
