"""Time the bootstrap of slides against calling scikit-learn with sample weights for each draw.

Run from the repository root: ``python -m benchmarks.bootstrap [patches] [slides] [draws]``. 0 slides means no slide
map. The benchmark first checks that both give the same numbers.
"""

import resource
import sys
import time

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from histoblend.models.metrics import bootstrap
from histoblend.models.resampling import slide_groups


def cohort(patches: int, slides: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and groups of slides that differ in prevalence and level of scores."""
    rng = np.random.default_rng(0)
    groups = rng.integers(slides, size=patches).astype(np.int32) if slides else slide_groups(np.full(patches, None))
    units = groups.max() + 1
    labels = (rng.random(patches) < rng.beta(0.5, 0.7, units)[groups]).astype(int)
    raw = 2 * labels + rng.normal(0, 1, patches) + rng.normal(0, 1, units)[groups]
    return labels, 1 / (1 + np.exp(-raw)), groups


def plain(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> list[list[float]]:
    """Draw slides and compute weighted metrics with scikit-learn, in a plain loop."""
    rng = np.random.default_rng(seed)
    units = groups.max() + 1
    values = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(units, size=units), minlength=units)[groups]
        values.append(
            [
                roc_auc_score(labels, scores, sample_weight=weights),
                average_precision_score(labels, scores, sample_weight=weights),
                np.average((labels - scores) ** 2, weights=weights),
                np.average((scores >= 0.5) == labels, weights=weights),
            ]
        )
    return values


def main(patches: int = 220_025, slides: int = 216, draws: int = 1000) -> None:
    """Check, time and print."""
    labels, scores, groups = cohort(patches, slides)
    few = 10
    start = time.perf_counter()
    expected = plain(labels, scores, groups, few, seed=1)
    slow = (time.perf_counter() - start) / few
    values = bootstrap(labels, scores, 0.5, groups, draws=few, seed=1).values[:, 0]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-10)
    start = time.perf_counter()
    bootstrap(labels, scores, 0.5, groups, draws=draws, seed=1)
    fast = (time.perf_counter() - start) / draws
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{patches:,} patches, {slides or 'no'} slides, {draws:,} draws, one model, four metrics, one core")
    print(
        f"plain loop {1e3 * slow:.1f} ms per draw, ours {1e3 * fast:.2f} ms per draw: {slow / fast:.0f} times as fast"
    )
    print(f"all draws {fast * draws:.1f} s; peak memory of the process {peak:.0f} MB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
