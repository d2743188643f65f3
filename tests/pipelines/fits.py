"""Sets of columns in files, and fitters that run in this process, for tests."""

import contextlib
import json

import numpy as np

from histoblend.pipelines.engine.fits import LocalFits
from histoblend.pipelines.run_files import COLUMNS, VALUES
from histoblend.pipelines.tables import FeatureSets


def stored_sets(folder, config, slides, **tables):
    """The configured sets of columns, on tables given by their step as pairs of values and column names."""
    for step, (values, columns) in tables.items():
        (folder / step).mkdir(parents=True)
        np.save(folder / step / VALUES, values)
        (folder / step / COLUMNS).write_text(json.dumps(columns), encoding="utf-8")
    return FeatureSets(config, {step: folder / step for step in tables}, slides)


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
