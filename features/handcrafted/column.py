"""What a feature column and a feature family are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from histoblend.features.handcrafted.channels import Planes

#: Regions of a patch, as columns name them, in words.
REGION_WORDS = {
    "whole": "whole patch",
    "centre": "centre 32 × 32",
    "ring": "outside the centre",
    "contrast": "centre minus ring",
}


@dataclass(frozen=True)
class Column:
    """One number of a patch.

    Attributes
    ----------
    name : str
        ``family_statistic_channel_region``; the four parts hold hyphens, never underscores.
    unit : str
        "1" for pure numbers.
    low, high : float
        Range, ends included; infinite where there is no bound.
    sentence : str
        What the number is, in words.
    reference : str
        Where it was published.
    """

    name: str
    unit: str
    low: float
    high: float
    sentence: str
    reference: str


@dataclass(frozen=True)
class Family:
    """Columns that one function computes together.

    Attributes
    ----------
    name : str
        First part of its columns' names.
    columns : tuple of Column
    compute : callable
        `channels.Planes` of n patches to (n, len(columns)) float32; pure, finite on any pixels, any n.
    cost : float
        Milliseconds of one core for a patch of 96 × 96 pixels, as `benchmarks/handcrafted.py` measured it.
    """

    name: str
    columns: tuple[Column, ...]
    compute: Callable[[Planes], np.ndarray]
    cost: float


class Row(NamedTuple):
    """A statistic or channel before it is crossed with the others."""

    name: str
    unit: str
    low: float
    high: float
    words: str
