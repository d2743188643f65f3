"""The tables of a finished run, from Python."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import open_array
from histoblend.pipelines.run_files import LADDER, PREDICTIONS, VALUES
from histoblend.pipelines.tables import read_values


@dataclass(frozen=True)
class RunTables:
    """Tables of a finished run. Create it with :func:`read_run`.

    Attributes
    ----------
    folder : Path
    predictions : DataFrame
        One row per patch: ``patch_id, slide, split, fold, label, prob_<model>``.
    ladder : DataFrame
        One row per model and split; docs/report.md describes the columns.
    """

    folder: Path
    predictions: pd.DataFrame
    ladder: pd.DataFrame

    def features(self) -> pd.DataFrame:
        """Handcrafted columns, float32, one row per patch, indexed by ``patch_id``; InputError if there are none."""
        return self._table("2-features")

    def embeddings(self) -> pd.DataFrame:
        """Columns of the pretrained embeddings, in the same form as :meth:`features`."""
        return self._table("3-embeddings")

    def _table(self, name: str) -> pd.DataFrame:
        if not (self.folder / name).is_dir():
            raise InputError(f"{self.folder}: expected a folder {name}; this run has none.")
        columns = read_values(self.folder / name)[1]
        values = open_array(self.folder / name / VALUES, mapped=True)
        return pd.DataFrame(values, columns=columns, index=self.predictions["patch_id"])


def read_run(folder: str | os.PathLike[str]) -> RunTables:
    """Read the tables of a finished run.

    Parameters
    ----------
    folder : path
        Such as ``runs/mine``.

    Raises
    ------
    InputError
        The folder does not contain a finished run.
    """
    path = Path(folder)
    for name in (PREDICTIONS, LADDER):
        if not (path / name).is_file():
            raise InputError(f"{path}: expected {name} of a finished run; there is none. Run `make baseline` first.")
    return RunTables(path, pd.read_parquet(path / PREDICTIONS), pd.read_csv(path / LADDER))
