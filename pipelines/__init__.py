"""Runs: configuration, artefact folders, steps and the command line."""
