"""Colour, texture and nuclei columns: one file a family, and the table of all."""
