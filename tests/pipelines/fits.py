"""Fitters that run in this process, for tests."""

import contextlib

from histoblend.pipelines.engine.fits import LocalFits


def local(values, workers=1):
    """A fitter on `values`, with column numbers as names."""
    return LocalFits(values, [str(number) for number in range(values.shape[1])], workers)


def opened(sets, workers=1):
    """Column names of the sets, and their fitters."""

    @contextlib.contextmanager
    def fitter(name):
        values, columns = sets[name]
        yield LocalFits(values, columns, workers)

    return {name: sets[name][1] for name in sets}, fitter
