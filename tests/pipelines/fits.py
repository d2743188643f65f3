"""What fits heads on a table in this process, for tests."""

from histoblend.pipelines.engine.fits import LocalFits, local_fitters


def local(values, workers=1):
    """Fits on `values`, whose columns have numbers for names."""
    return LocalFits(values, [str(number) for number in range(values.shape[1])], workers)


def opened(sets, workers=1):
    """Columns of the sets, and what opens fits on each."""
    return {name: sets[name][1] for name in sets}, local_fitters(sets, workers, lambda name, values: None)
