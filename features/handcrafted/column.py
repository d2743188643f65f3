"""Data classes for feature columns and feature families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from histoblend.features.handcrafted.channels import Planes

#: What the region in a column's name means.
REGION_WORDS = {
    "whole": "whole patch",
    "centre": "centre 32 × 32",
    "ring": "outside the centre",
    "contrast": "centre minus ring",
}
#: What the channel in a column's name means, where the name alone does not say it.
CHANNEL_WORDS = {"absorbed": "red-light absorption"}


@dataclass(frozen=True)
class Column:
    """A feature: one number per patch.

    Attributes
    ----------
    name : str
        ``family_statistic_channel_region``. The four parts may contain hyphens but no underscores.
    unit : str
        "1" for pure numbers.
    low, high : float
        Range, bounds included; infinite if unbounded.
    sentence : str
        Description of the feature.
    reference : str
        Publication.
    """

    name: str
    unit: str
    low: float
    high: float
    sentence: str
    reference: str


@dataclass(frozen=True)
class Family:
    """Feature columns that one function computes together.

    Attributes
    ----------
    name : str
        First part of the column names.
    columns : tuple of Column
    compute : callable
        Maps the `channels.Planes` of n patches to an array of shape (n, len(columns)), dtype float32. Has no side
        effects, and returns finite values for any pixels and any n.
    cost : float
        Milliseconds of one core per patch of 96 × 96 pixels, measured by `benchmarks/handcrafted.py`.
    """

    name: str
    columns: tuple[Column, ...]
    compute: Callable[[Planes], np.ndarray]
    cost: float


class Row(NamedTuple):
    """A statistic or a channel, before all combinations are formed."""

    name: str
    unit: str
    low: float
    high: float
    words: str
