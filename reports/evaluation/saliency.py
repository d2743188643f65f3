"""Maps of evidence of a sample of held-out patches, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class SaliencyView:
    """Maps of evidence of a sample of held-out patches; see :mod:`models.inspection.saliency`.

    Attributes
    ----------
    patches : DataFrame
        A row a patch: ``patch_id, slide, label, prob_cnn, outcome, sampled, shown`` and ``share_<map>`` and
        ``share_<map>_within`` (without the outermost cells) for each of :data:`models.inspection.saliency.MAPS`.
    sanity : DataFrame
        From :func:`models.inspection.saliency.sanity_table`.
    last, inner : ndarray of shape (shown, rows, columns); inner may be None
        Maps of the patches that are shown, in their order.
    facts : mapping
        ``threshold``, ``held_out`` (patches that the sample is of), ``side`` (of a patch, px), ``cells`` (map to rows
        and columns), ``checked`` (patches that random networks were shown), ``d4``.
    """

    patches: pd.DataFrame
    sanity: pd.DataFrame
    last: np.ndarray
    inner: np.ndarray | None
    facts: Mapping[str, Any]
