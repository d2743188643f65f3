"""Whole slides: opening them, finding tissue, cutting it into patches."""
