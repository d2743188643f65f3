"""Inferred slides: similar patches share one, names are marked as inferred, and results are reproducible."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from histoblend.data.audit.inferred_slides import TINTS, clusters_for, infer_slides
from histoblend.data.splits import is_known


def stained(slides=6, each=50, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0.2, 0.5, (slides, len(TINTS)))
    tints = np.repeat(centres, each, axis=0) + rng.normal(0, 0.004, (slides * each, len(TINTS)))
    return pd.DataFrame(tints, columns=list(TINTS)), np.repeat(np.arange(slides), each)


def test_patches_with_similar_stain_share_a_cluster():
    measures, truth = stained()
    names = infer_slides(measures, np.arange(len(measures)), clusters=6, seed=0)
    assert adjusted_rand_score(truth, names) == 1
    assert names.str.fullmatch(r"\(inferred 0[0-5]\)").all()
    assert not is_known(names).any()
    pd.testing.assert_series_equal(names, infer_slides(measures, np.arange(len(measures)), clusters=6, seed=0))


def test_a_duplicate_shares_the_cluster_of_its_original():
    measures, _ = stained()
    together = np.arange(len(measures))
    together[299] = 0
    names = infer_slides(measures, together, clusters=6, seed=0)
    assert names[299] == names[0] != names[298]


def test_constant_colours_and_few_patches_are_accepted():
    measures = pd.DataFrame(np.tile(np.arange(3.0)[:, None], (1, len(TINTS))), columns=list(TINTS))
    assert infer_slides(measures, np.arange(3), clusters=20, seed=0).nunique() == 3


@pytest.mark.parametrize(("share", "folds", "expected"), [(0.2, 5, 20), (0.5, 5, 9), (0.3, 3, 14)])
def test_clusters_are_as_few_as_the_split_allows(share, folds, expected):
    assert clusters_for(share, folds) == expected
