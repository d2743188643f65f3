"""A table that comes in by rows and is asked for by columns, in memory where it is small and in a file elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import numpy as np

#: Bytes up to which a table stays in memory.
MOST_IN_MEMORY = 64_000_000


class Columns:
    """Rows of float32 values, turned into columns.

    Parameters
    ----------
    rows : int
        That are going to be added.
    folder : Path
        Where a large table is kept meanwhile, in a file that no break leaves behind.
    """

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self._added = 0
        self._array: np.ndarray | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: np.ndarray) -> None:
        """Add some rows, (m, columns) float32, after those that are there."""
        if self._array is None and self._file is None:
            if 4 * self.rows * rows.shape[1] <= MOST_IN_MEMORY:
                self._array = np.empty((rows.shape[1], self.rows), np.float32)
            else:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed by __exit__)
        end = self._added + len(rows)
        if self._array is not None:
            self._array[:, self._added : end] = rows.T
        elif self._file is not None:
            for number, column in enumerate(np.ascontiguousarray(rows.T)):
                self._file.seek(4 * (number * self.rows + self._added))
                self._file.write(column.data)
        self._added = end

    def take(self, places: np.ndarray) -> np.ndarray:
        """Values of some columns over all rows, (rows, len(places)) float32."""
        if self._array is not None:
            return np.ascontiguousarray(self._array[places].T)
        if self._file is None:
            raise ValueError("columns must be taken after all rows were added; none was.")
        taken = np.empty((self.rows, len(places)), np.float32)
        for number, place in enumerate(places.tolist()):
            self._file.seek(4 * place * self.rows)
            taken[:, number] = np.frombuffer(self._file.read(4 * self.rows), np.float32)
        return taken
