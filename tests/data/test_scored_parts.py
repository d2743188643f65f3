"""Parts of a split without a score or an interval are refused before training."""

import numpy as np
import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.scored_parts import check_scored
from histoblend.data.slide_kinds import SlideCounts
from histoblend.models.metrics import bootstrap


def table_of(train, test, column="official"):
    """Patches of slides: ``m`` holds both labels, ``p`` 1, ``n`` 0; ``.`` is a patch of label 0 without a slide."""
    rows = [
        (side, None if kind == "." else f"{side}{number}", label)
        for side, kinds in (("train", train), ("test", test))
        for number, kind in enumerate(kinds)
        for label in {"m": (0, 1), "p": (1, 1), "n": (0, 0), ".": (0,)}[kind]
    ]
    table = pd.DataFrame(rows, columns=[column, "slide", "label"]).astype({"slide": "string"})
    return table.assign(patch_id=[f"p{row}" for row in range(len(table))])


@pytest.mark.parametrize("test", ["m", "ppn", "mp", "pn.", "m...", "mm"])
@pytest.mark.parametrize("column", ["official", "split"])
def test_parts_with_scores_and_intervals_pass(test, column):
    check_scored(table_of("mmpn", test, column))


@pytest.mark.parametrize(
    ("test", "got"),
    [
        ("p", r"1 slide, 1 with tumour \(label 1\), 0 with label 0, 0 of them with both"),
        ("nnnn", r"4 slides, 0 with tumour \(label 1\), 4 with label 0, 0 of them with both"),
        ("pn", r"2 slides, 1 with tumour \(label 1\), 1 with label 0, 0 of them with both"),
        ("p.", r"2 slides, 1 with tumour"),
        ("...", r"3 patches, 0 with tumour"),
    ],
)
def test_an_official_test_set_without_scores_or_intervals_is_refused(test, got):
    with pytest.raises(
        InputError, match=rf"^the official test set must hold .* Got {got}.*or remove the official test "
    ):
        check_scored(table_of("mmpn", test))


def test_two_pure_slides_are_refused_on_either_side():
    with pytest.raises(InputError, match=r"^the training part must hold .* Add slides to the training part.$"):
        check_scored(table_of("pn", "mm", "split"))
    with pytest.raises(InputError, match=r"^the test set must hold .* Add slides to the test set.$"):
        check_scored(table_of("mm", "pn", "split"))


def test_a_table_without_a_split_is_not_checked():
    check_scored(table_of("p", "p").drop(columns="official"))


@pytest.mark.parametrize("kinds", [(0, 1, 2), (0, 3, 1), (1, 1, 0), (1, 0, 0), (0, 1, 30), (0, 4, 0), (1, 9, 0)])
def test_most_draws_hold_both_labels_agrees_with_the_bootstrap(kinds):
    mixed, positive, negative = kinds
    groups = np.repeat(np.arange(sum(kinds)), 2).astype(np.int32)
    labels = np.array([0, 1] * mixed + [1, 1] * positive + [0, 0] * negative)
    try:
        bootstrap(labels, np.linspace(0, 1, len(labels)), 0.5, groups)
        drawn = True
    except InputError:
        drawn = False
    assert SlideCounts(*kinds).most_draws_hold_both == drawn
