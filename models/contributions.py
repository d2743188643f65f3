"""What each column adds to a head's log odds, patch by patch."""

from __future__ import annotations

import numpy as np

from histoblend.models.heads import LogisticHead, XGBoostHead


def contributions(head: LogisticHead | XGBoostHead, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Share of each column in the log odds of each patch.

    Parameters
    ----------
    head : LogisticHead or XGBoostHead
        Fitted.
    rows : ndarray of shape (n, n_features), float
        The patches' columns.

    Returns
    -------
    shares : ndarray of shape (n, n_features), dtype float64
        Logistic regression: coefficient times the column's distance from the training mean in standard deviations.
        XGBoost: Shapley values of the trees, averaged over the boosters.
    base : float
        Log odds without any column, the same for every patch; with all shares it adds up to a patch's log odds.

    References
    ----------
    Lundberg et al. (2020), Nat Mach Intell 2:56-67.
    """
    if isinstance(head, LogisticHead):
        return head.coef_[0] * (rows - head.mean_) / head.scale_, float(head.intercept_[0])
    import xgboost

    shares, base = np.zeros((len(rows), head.n_features_in_)), 0.0
    for chosen, booster in zip(head.columns_, head.boosters_, strict=True):
        # One thread: several heads are explained at the same time.
        matrix = xgboost.DMatrix(np.ascontiguousarray(rows[:, chosen], dtype=np.float32), nthread=1)
        found = booster.predict(matrix, pred_contribs=True).astype(np.float64)
        shares[:, chosen] += found[:, :-1] / len(head.boosters_)
        # What trees expect of the patches that they were grown on: it does not depend on the row.
        base += float(found[0, -1]) / len(head.boosters_)
    return shares, base
