"""Fitters of heads in this process, for tests."""

from histoblend.pipelines.engine.fits import LocalFits, local_fitters


def local(values, workers=1):
    """Fitter on `values`, with numbers as column names."""
    return LocalFits(values, [str(number) for number in range(values.shape[1])], workers)


def opened(sets, workers=1):
    """Columns of each set, and a function that opens the fitter of each."""
    return {name: sets[name][1] for name in sets}, local_fitters(sets, workers, lambda name, values: None)
