"""Whether a split exists, compared with an exhaustive search; and suggestions worked out by hand."""

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

from histoblend.data.slide_kinds import SlideCounts, SplitRequest, most_covered

ONE_EACH = "Add at least 1 more slide with label 1 and 1 more slide with label 0"
ONES, ZEROS = "mp", "mn"


@cache
def divisions(slides, folds):
    """For every division of slides (letters) into folds: does each leave both labels, and how many hold both."""
    outcomes = set()
    for assignment in product(range(folds), repeat=len(slides)):
        parts = ["".join(s for s, own in zip(slides, assignment, strict=True) if own == fold) for fold in range(folds)]
        rests = ["".join(other for number, other in enumerate(parts) if number != fold) for fold in range(folds)]
        outcomes.add((all(parts) and all(map(holds_both, rests)), sum(map(holds_both, parts))))
    return outcomes


def holds_both(slides):
    return bool(set(slides) & set(ONES) and set(slides) & set(ZEROS))


def exhaustive_search(counts, held_out, folds):
    """Try every split: does one exist, and does one exist whose folds all hold both labels."""
    slides = "m" * counts.mixed + "p" * counts.positive + "n" * counts.negative
    outcomes = set()
    for test in {"".join(chosen) for chosen in combinations(slides, held_out)}:
        if holds_both(test):
            rest = slides
            for slide in test:
                rest = rest.replace(slide, "", 1)
            outcomes |= divisions(rest, folds)
    return any(leaves for leaves, _ in outcomes), any(both == folds for leaves, both in outcomes if leaves)


@pytest.mark.parametrize(("held_out", "most"), [(2, 6), (4, 8)])
@pytest.mark.parametrize("folds", [2, 3])
def test_a_split_exists_exactly_if_an_exhaustive_search_finds_one(held_out, most, folds):
    for mixed, positive, negative in product(range(most + 1), repeat=3):
        if held_out < mixed + positive + negative <= most:
            counts = SlideCounts(mixed, positive, negative)
            covered = most_covered(counts, held_out, folds)
            assert (covered > 0, covered == folds) == exhaustive_search(counts, held_out, folds), counts


def test_slides_are_counted_by_their_labels():
    counts = SlideCounts.of(np.array([3, 0, 1, 0, 2]), np.array([0, 4, 2, 1, 0]))
    assert counts == SlideCounts(mixed=1, positive=2, negative=2)
    assert (counts.slides, counts.parts) == (5, 3)


@pytest.mark.parametrize(
    ("counts", "share", "folds", "settings"),
    [
        # 4 of 8 slides are held out, the others make four folds.
        (SlideCounts(8, 0, 0), 0.2, 5, ["split.folds=4"]),
        # 9 of 10 are held out; two folds need two slides, so 8 may be held out.
        (SlideCounts(10, 0, 0), 0.9, 2, ["split.test_share=0.8"]),
        # 7 of 8 are held out; even holding out 4 leaves too few for a fifth fold.
        (SlideCounts(8, 0, 0), 0.9, 5, ["split.folds=4", "split.test_share=0.5"]),
        # 5 of 9 pure slides are held out; each label needs two of the 4 others. With 3 positive ones that fits.
        (SlideCounts(0, 3, 6), 0.7, 3, ["split.test_share=0.6"]),
        # One positive slide cannot be in the test set and in two folds.
        (SlideCounts(0, 1, 11), 0.2, 5, []),
        (SlideCounts(0, 3, 4), 0.2, 2, []),
    ],
)
def test_settings_that_allow_a_split(counts, share, folds, settings):
    request = SplitRequest(counts, share, folds)
    assert not request.possible
    assert request.settings() == settings


@pytest.mark.parametrize(
    ("counts", "official", "more"),
    [
        (SlideCounts(0, 1, 11), False, "Add at least 2 more slides with label 1."),
        (SlideCounts(1, 0, 11), False, "Add at least 2 more slides with label 1."),
        (SlideCounts(0, 9, 2), False, "Add at least 1 more slide with label 0."),
        # Four are held out; each label needs two of the other three slides.
        (SlideCounts(0, 3, 4), False, "Add at least 1 more slide."),
        (
            SlideCounts(2, 0, 0),
            False,
            f"{ONE_EACH} and 2 more slides.",
        ),
        (SlideCounts(0, 1, 8), True, "Add at least 1 more slide with label 1."),
    ],
)
def test_slides_to_add(counts, official, more):
    assert SplitRequest(counts, 0.2, 2, official).more_slides("slides") == more


@pytest.mark.parametrize("seed", range(40))
def test_suggested_settings_are_enough_and_no_larger_ones_are(seed):
    rng = np.random.default_rng(seed)
    counts = SlideCounts(*map(int, rng.integers(1, 9, 3)))
    request = SplitRequest(counts, float(rng.choice([0.2, 0.5, 0.9])), int(rng.integers(2, 7)))
    if request.possible:
        return
    changed = {name: float(value) for name, _, value in (each[6:].partition("=") for each in request.settings())}
    if changed:
        share, folds = changed.get("test_share", request.test_share), int(changed.get("folds", request.folds))
        assert SplitRequest(request.counts, share, folds).possible
        if len(changed) == 1 and "folds" in changed:
            assert not SplitRequest(request.counts, share, folds + 1).possible
