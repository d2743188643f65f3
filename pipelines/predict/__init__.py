"""Prediction of new patches and whole slides."""
