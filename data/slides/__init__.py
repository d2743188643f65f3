"""Whole slides: reading, tissue detection and cutting into patches."""
