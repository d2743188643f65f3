"""A head on the fine-tuned network's pooled channels, raw and relative to the rest of each patch's slide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.models.cnn import column_names
from histoblend.models.heads.registry import new_head
from histoblend.models.names import CNN_CONTEXT
from histoblend.pipelines.run_files import COLUMNS
from histoblend.pipelines.tables import context_table, known_slides, slides_in_one_fold

if TYPE_CHECKING:
    from histoblend.models.heads.head import Head


class ChannelContext:
    """Fits these heads. Neither the head nor the network of a fold sees labels of that fold.

    Parameters
    ----------
    table : DataFrame
        ``label, slide, fold`` of all patches of the run.
    groups : ndarray of shape (n,)
        Groups that inner folds do not split.
    seed : int
    """

    def __init__(self, table: pd.DataFrame, groups: np.ndarray, seed: int) -> None:
        self.slides, self.labels = known_slides(table["slide"]), table["label"].to_numpy()
        self.groups, self.seed = groups, seed
        self.possible = bool(pd.notna(self.slides).any()) and slides_in_one_fold(table, self.slides)

    def values(self, channels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Channels, raw and relative to each patch's slide, (n, 2 k) float32, and their names.

        Parameters
        ----------
        channels : ndarray of shape (n, k), dtype float32
            All from one network, and of whole slides.
        rows : ndarray of shape (n,), int
            Their rows in the table.
        """
        return context_table(channels, column_names(channels.shape[1])[1:], self.slides[rows])

    def fit(self, values: np.ndarray, rows: np.ndarray) -> Head:
        """Fit a head on rows of the table, given their :meth:`values`."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return new_head(CNN_CONTEXT.partition("_")[0], self.seed).fit(values, self.labels[rows], self.groups[rows])


def store(head: Head, names: list[str], folder: Path) -> None:
    """Write a fitted head, and the names of its columns to a file next to its folder."""
    head.save(folder)
    folder.with_name(f"{folder.name}-{COLUMNS}").write_text(json.dumps(names), encoding="utf-8")


def columns_of(folder: Path) -> list[str]:
    """Names of the columns of a stored head."""
    names: list[str] = json.loads(folder.with_name(f"{folder.name}-{COLUMNS}").read_text(encoding="utf-8"))
    return names
