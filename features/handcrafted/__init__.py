"""Colour, texture and nuclei features: one file per family, and the registry of all families."""
