"""Where weights rest."""
