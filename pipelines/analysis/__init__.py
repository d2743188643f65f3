"""Analyses of fitted models. Each is a cached step."""
