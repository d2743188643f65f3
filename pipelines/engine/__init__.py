"""Engines that run the work: this machine or a Dask cluster."""
