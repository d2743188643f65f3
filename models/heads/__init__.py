"""Heads: classifiers on a feature table, one file each, that answer the same questions by the same methods."""
