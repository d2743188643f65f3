"""Time scoring a table with one shuffled column: ``with_replaced`` against predicting the whole table again.

Run from the repository root: ``python -m benchmarks.altered [rows] [columns]``. The table is that of
``benchmarks.heads``. Both heads are fitted on four fifths of the slides. Each column of the other slides is shuffled in
turn and scored both ways. The largest difference is printed with the ratio. A difference above 1e-6 is an error.
"""

import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.heads import SLIDES, made_up_table
from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead

ROUNDING = 1e-6


def main(rows: int = 3_000, columns: int = 848) -> None:
    """Print one line per head."""
    values, labels, slides = made_up_table(rows, columns)
    held_out = slides >= SLIDES * 4 // 5
    test = values[held_out]
    order = np.random.default_rng(0).permutation(len(test))
    print(f"{len(test):,} rows, each of {columns:,} columns shuffled once")
    for name, head in (("logistic", LogisticHead()), ("xgboost", XGBoostHead())):
        head.fit(values[~held_out], labels[~held_out], slides[~held_out])
        head.with_replaced(test)([0], test[:, :1])  # compiles kernels
        start = time.perf_counter()
        score = head.with_replaced(test)
        fast = np.array([score([column], test[order, column : column + 1]) for column in range(columns)])
        fast_end = time.perf_counter()
        plain = np.array([_score_whole_table(head, test, order, column) for column in range(columns)])
        end = time.perf_counter()
        difference = np.abs(fast - plain).max()
        if difference > ROUNDING:
            raise SystemExit(f"{name}: scores must differ by at most {ROUNDING:.0e}; got {difference:.1e}.")
        ratio = (end - fast_end) / (fast_end - start)
        print(f"{name:9s} scores differ by at most {difference:.0e}; {ratio:5.1f} times as fast")


def _score_whole_table(
    head: LogisticHead | XGBoostHead, table: np.ndarray, order: np.ndarray, column: int
) -> np.ndarray:
    """Score the whole table with one column shuffled."""
    original = table[:, column].copy()
    table[:, column] = original[order]
    scores: np.ndarray = head.predict_proba(table)[:, 1]
    table[:, column] = original
    return scores


if __name__ == "__main__":
    with threadpool_limits(1):
        main(*(int(argument) for argument in sys.argv[1:3]))
