"""What each column adds to a head's log odds for one patch."""

from __future__ import annotations

import numpy as np

from models.heads import LogisticHead, XGBoostHead


def contributions(head: LogisticHead | XGBoostHead, row: np.ndarray) -> tuple[np.ndarray, float]:
    """Share of each column in the log odds of one patch.

    Parameters
    ----------
    head : LogisticHead or XGBoostHead
        Fitted.
    row : ndarray of shape (n_features,), float
        The patch's columns.

    Returns
    -------
    shares : ndarray of shape (n_features,), dtype float64
        Logistic regression: coefficient times the column's distance from the training mean in standard deviations.
        XGBoost: Shapley values of the trees, averaged over the boosters.
    base : float
        Log odds without any column; with all shares it adds up to the patch's log odds.

    References
    ----------
    Lundberg et al. (2020), Nat Mach Intell 2:56-67.
    """
    if isinstance(head, LogisticHead):
        return head.coef_[0] * (row - head.mean_) / head.scale_, float(head.intercept_[0])
    import xgboost

    shares, base = np.zeros(head.n_features_in_), 0.0
    for chosen, booster in zip(head.columns_, head.boosters_, strict=True):
        matrix = xgboost.DMatrix(np.ascontiguousarray(row[None, chosen], dtype=np.float32), nthread=1)
        found = booster.predict(matrix, pred_contribs=True)[0].astype(np.float64)
        shares[chosen] += found[:-1] / len(head.boosters_)
        base += found[-1] / len(head.boosters_)
    return shares, base
