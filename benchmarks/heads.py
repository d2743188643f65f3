"""What the heads' limits on rows save, and what they cost in AUC.

Run from the repository's root: ``python -m benchmarks.heads [rows] [columns]``. The table is made up: columns that
correlate, slides that differ in level and in prevalence, and a label that shifts some directions a little. A fifth of
the slides is held out. Each head is fitted as it comes and without its limit; both AUCs stand beside the seconds of one
core. ``python -m benchmarks.heads 220025 1280 limited`` leaves the slow way out.
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


def made_up(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values (rows, columns) float32, labels and slides."""
    rng = np.random.default_rng(0)
    slides = np.sort(rng.integers(0, SLIDES, rows))
    labels = (rng.random(rows) < rng.beta(0.7, 0.9, SLIDES)[slides]).astype(int)
    mixing = rng.normal(size=(DIRECTIONS, columns)).astype(np.float32)
    effect = 0.35 * rng.normal(size=DIRECTIONS)
    levels = 0.8 * rng.normal(size=(SLIDES, DIRECTIONS))
    values = np.empty((rows, columns), np.float32)
    for start in range(0, rows, 10_000):
        part = slice(start, min(start + 10_000, rows))
        hidden = levels[slides[part]] + np.outer(labels[part] - 0.5, effect)
        hidden += rng.normal(size=hidden.shape)
        values[part] = 0.5 * (hidden.astype(np.float32) @ mixing) + rng.normal(size=(len(hidden), columns))
    return values, labels, slides


def judge(head, values, labels, slides) -> tuple[float, float]:
    """Core seconds of a fit on four fifths of the slides, and AUC on the others."""
    held_out = slides >= SLIDES * 4 // 5
    learned = np.flatnonzero(~held_out)
    start = time.process_time()
    head.fit(values[learned], labels[learned], slides[learned])
    seconds = time.process_time() - start
    return seconds, roc_auc_score(labels[held_out], head.predict_proba(values[held_out])[:, 1])


def main(rows: int = 60_000, columns: int = 400, *, limited: bool = False) -> None:
    """Print a line a head."""
    table = made_up(rows, columns)
    without = 10**9
    pairs = [
        ("logistic", LogisticHead(), LogisticHead(choose_on=without)),
        ("xgboost", XGBoostHead(), XGBoostHead(grow_on=without)),
    ]
    print(f"{rows:,} rows of {SLIDES} slides, {columns:,} columns")
    for name, head, plain in pairs:
        seconds, auc = judge(head, *table)
        print(f"{name:9s} as it comes     {seconds:7.1f} s   AUC {auc:.4f}")
        if not limited:
            more, other = judge(plain, *table)
            print(f"{name:9s} without limits  {more:7.1f} s   AUC {other:.4f}   {more / seconds:5.2f} × the seconds")


if __name__ == "__main__":
    with threadpool_limits(1):
        main(*(int(argument) for argument in sys.argv[1:3]), limited="limited" in sys.argv[3:])
