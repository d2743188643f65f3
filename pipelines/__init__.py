"""What is run: configuration, artefact folders, steps and the command line."""
