"""Scores of a table with one column shuffled: all of it again, or what the column touches.

Run from the repository's root: ``python -m benchmarks.altered [rows] [columns]``. The table is that of
``benchmarks.heads``. Both heads are fitted on four fifths of the slides; every column of the others is shuffled in turn
and scored by ``predict_proba`` and by ``with_replaced``. The largest difference is printed before the ratio, and one
above 1e-6 ends it.
"""

import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.heads import SLIDES, made_up
from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead

ROUNDING = 1e-6


def main(rows: int = 3_000, columns: int = 848) -> None:
    """Print a line a head."""
    values, labels, slides = made_up(rows, columns)
    held_out = slides >= SLIDES * 4 // 5
    shown = values[held_out]
    order = np.random.default_rng(0).permutation(len(shown))
    print(f"{len(shown):,} rows, each of {columns:,} columns shuffled once")
    for name, head in (("logistic", LogisticHead()), ("xgboost", XGBoostHead())):
        head.fit(values[~held_out], labels[~held_out], slides[~held_out])
        head.with_replaced(shown)([0], shown[:, :1])  # compiles
        start = time.perf_counter()
        score = head.with_replaced(shown)
        fast = np.array([score([place], shown[order, place : place + 1]) for place in range(columns)])
        middle = time.perf_counter()
        plain = np.array([_whole(head, shown, order, place) for place in range(columns)])
        end = time.perf_counter()
        difference = np.abs(fast - plain).max()
        if difference > ROUNDING:
            raise SystemExit(f"{name}: scores differ by up to {difference:.1e}; at most {ROUNDING:.0e} is rounding.")
        ratio = (end - middle) / (middle - start)
        print(f"{name:9s} scores differ by at most {difference:.0e}; {ratio:5.1f} × as fast")


def _whole(head: LogisticHead | XGBoostHead, table: np.ndarray, order: np.ndarray, place: int) -> np.ndarray:
    """Score the whole table with one column shuffled."""
    before = table[:, place].copy()
    table[:, place] = before[order]
    scores: np.ndarray = head.predict_proba(table)[:, 1]
    table[:, place] = before
    return scores


if __name__ == "__main__":
    with threadpool_limits(1):
        main(*(int(argument) for argument in sys.argv[1:3]))
