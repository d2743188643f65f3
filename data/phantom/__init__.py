"""Synthetic patches and slides with known ground truth."""
