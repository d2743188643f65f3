"""Time saved by the heads' row limits, and the AUC that they cost.

Run from the repository root: ``python -m benchmarks.heads [rows] [columns]``. The table is synthetic: columns are
correlated, slides differ in level and prevalence, and the label shifts some directions slightly. A fifth of the slides
is held out. Each head is fitted with its default limit and without it. The AUC and the seconds of one core are printed
for both. ``python -m benchmarks.heads 220025 1280 limited`` skips the fit without limits.
"""

import sys
import time

import numpy as np
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead

SLIDES = 216
DIRECTIONS = 40


def made_up_table(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values (rows, columns) float32, labels and slides."""
    rng = np.random.default_rng(0)
    slides = np.sort(rng.integers(0, SLIDES, rows))
    labels = (rng.random(rows) < rng.beta(0.7, 0.9, SLIDES)[slides]).astype(int)
    mixing = rng.normal(size=(DIRECTIONS, columns)).astype(np.float32)
    effect = 0.35 * rng.normal(size=DIRECTIONS)
    levels = 0.8 * rng.normal(size=(SLIDES, DIRECTIONS))
    values = np.empty((rows, columns), np.float32)
    for start in range(0, rows, 10_000):
        block = slice(start, min(start + 10_000, rows))
        hidden = levels[slides[block]] + np.outer(labels[block] - 0.5, effect)
        hidden += rng.normal(size=hidden.shape)
        values[block] = 0.5 * (hidden.astype(np.float32) @ mixing) + rng.normal(size=(len(hidden), columns))
    return values, labels, slides


def fit_and_score(head, values, labels, slides) -> tuple[float, float]:
    """Core seconds of a fit on four fifths of the slides, and the AUC on the other slides."""
    held_out = slides >= SLIDES * 4 // 5
    train = np.flatnonzero(~held_out)
    start = time.process_time()
    head.fit(values[train], labels[train], slides[train])
    seconds = time.process_time() - start
    return seconds, roc_auc_score(labels[held_out], head.predict_proba(values[held_out])[:, 1])


def main(rows: int = 60_000, columns: int = 400, *, limited: bool = False) -> None:
    """Print one or two lines per head."""
    table = made_up_table(rows, columns)
    no_limit = 10**9
    pairs = [
        ("logistic", LogisticHead(), LogisticHead(choose_on=no_limit)),
        ("xgboost", XGBoostHead(), XGBoostHead(grow_on=no_limit)),
    ]
    print(f"{rows:,} rows of {SLIDES} slides, {columns:,} columns")
    for name, head, plain in pairs:
        seconds, auc = fit_and_score(head, *table)
        print(f"{name:9s} default limits  {seconds:7.1f} s   AUC {auc:.4f}")
        if not limited:
            slow, slow_auc = fit_and_score(plain, *table)
            print(f"{name:9s} without limits  {slow:7.1f} s   AUC {slow_auc:.4f}   {slow / seconds:5.2f} times as long")


if __name__ == "__main__":
    with threadpool_limits(1):
        main(*(int(argument) for argument in sys.argv[1:3]), limited="limited" in sys.argv[3:])
