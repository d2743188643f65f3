"""The steps of a run: one module per artefact folder."""
