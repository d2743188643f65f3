"""Heads: classifiers on a feature table with a common interface, one file each."""
