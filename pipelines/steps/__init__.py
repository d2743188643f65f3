"""One file for each numbered folder of a run."""
