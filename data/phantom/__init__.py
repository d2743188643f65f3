"""Synthetic patches and slides with known truth."""
