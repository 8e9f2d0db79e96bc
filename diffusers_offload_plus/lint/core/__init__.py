"""What all rooms share: findings, errors, text for people, files of results. Imports no other room."""
