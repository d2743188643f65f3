"""Evidence maps of a sample of held-out patches, with their sanity checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class SaliencyView:
    """Evidence maps of a sample of held-out patches; see :mod:`models.inspection.saliency`.

    Attributes
    ----------
    patches : DataFrame
        One row per patch: ``patch_id, slide, label, prob_cnn, outcome, sampled, shown`` and ``share_<map>`` and
        ``share_<map>_within`` (without the outermost cells) for each of :data:`models.inspection.saliency.MAPS`.
    sanity : DataFrame
        From :func:`models.inspection.saliency.sanity_table`.
    last, inner : ndarray of shape (shown, rows, columns); inner may be None
        Maps of the patches shown, in the same order.
    facts : mapping
        ``threshold``, ``held_out`` (number of patches sampled from), ``side`` (of a patch, px), ``cells`` (rows and
        columns per map), ``checked`` (number of patches used with random networks), ``d4``.
    """

    patches: pd.DataFrame
    sanity: pd.DataFrame
    last: np.ndarray
    inner: np.ndarray | None
    facts: Mapping[str, Any]
