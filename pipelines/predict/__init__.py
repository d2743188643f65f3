"""New patches and whole slides."""
