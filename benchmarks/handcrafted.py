"""Time the batch table against the per-patch scikit-image loop over the same columns.

Run from the repository's root: ``python -m benchmarks.handcrafted``. Checks that both give the same numbers first.
"""

import time

import numpy as np
from threadpoolctl import threadpool_limits

from features import table
from tests.oracles import handcrafted, pictures

PATCHES = 512
LOOPED = 12


def seconds(function, *arguments):
    """Return the core's seconds of the best of three runs: wall time would count other work on a busy machine."""
    times = []
    for _ in range(3):
        start = time.process_time()
        function(*arguments)
        times.append(time.process_time() - start)
    return min(times)


def main():
    """Print one line a family: milliseconds a patch both ways, and the ratio."""
    few = pictures.real(LOOPED)
    if few is None:
        few = np.stack([pictures.tissue(seed) for seed in range(LOOPED)])
    many = np.resize(few, (PATCHES, *few.shape[1:]))
    totals = np.zeros(2)
    print(f"{'family':<14}{'columns':>8}{'loop ms':>10}{'batch ms':>10}{'ratio':>8}")
    for family in table.FAMILIES:
        names = [column.name for column in family.columns]
        expected = handcrafted.table(few, family.name, names)
        np.testing.assert_allclose(table.compute(few, [family.name]), expected, rtol=1.1e-6, atol=1e-9)
        loop = seconds(handcrafted.table, few, family.name, names) / LOOPED * 1e3
        batch = seconds(table.compute, many, [family.name]) / PATCHES * 1e3
        totals += loop, batch
        print(f"{family.name:<14}{len(names):>8}{loop:>10.2f}{batch:>10.3f}{loop / batch:>8.1f}")
    print(f"{'all':<14}{len(table.columns()):>8}{totals[0]:>10.2f}{totals[1]:>10.3f}{totals[0] / totals[1]:>8.1f}")


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
