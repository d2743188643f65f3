"""Whether a split exists, against trying every one; and remedies that are worked out by hand."""

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

from histoblend.data.slide_kinds import Kinds, Wanted, most_covered

ONE_EACH = "Give at least 1 more slide with label 1 and 1 more slide with label 0"
ONES, ZEROS = "mp", "mn"


@cache
def divisions(slides, folds):
    """Of every division of slides (letters) into folds: whether each leaves both labels, and how many hold both."""
    found = set()
    for places in product(range(folds), repeat=len(slides)):
        parts = ["".join(s for s, place in zip(slides, places, strict=True) if place == fold) for fold in range(folds)]
        rests = ["".join(other for number, other in enumerate(parts) if number != fold) for fold in range(folds)]
        found.add((all(parts) and all(map(holds_both, rests)), sum(map(holds_both, parts))))
    return found


def holds_both(slides):
    return bool(set(slides) & set(ONES) and set(slides) & set(ZEROS))


def tried(kinds, held_out, folds):
    """Whether a split exists, and whether one whose folds all hold both labels does, by trying every one."""
    slides = "m" * kinds.mixed + "p" * kinds.positive + "n" * kinds.negative
    found = set()
    for test in {"".join(chosen) for chosen in combinations(slides, held_out)}:
        if holds_both(test):
            rest = slides
            for slide in test:
                rest = rest.replace(slide, "", 1)
            found |= divisions(rest, folds)
    return any(leaves for leaves, _ in found), any(both == folds for leaves, both in found if leaves)


@pytest.mark.parametrize(("held_out", "most"), [(2, 6), (4, 8)])
@pytest.mark.parametrize("folds", [2, 3])
def test_a_split_exists_exactly_where_trying_all_finds_one(held_out, most, folds):
    for mixed, positive, negative in product(range(most + 1), repeat=3):
        if held_out < mixed + positive + negative <= most:
            kinds = Kinds(mixed, positive, negative)
            covered = most_covered(kinds, held_out, folds)
            assert (covered > 0, covered == folds) == tried(kinds, held_out, folds), kinds


def test_slides_are_counted_by_what_they_hold():
    kinds = Kinds.of(np.array([3, 0, 1, 0, 2]), np.array([0, 4, 2, 1, 0]))
    assert kinds == Kinds(mixed=1, positive=2, negative=2)
    assert (kinds.slides, kinds.parts) == (5, 3)


@pytest.mark.parametrize(
    ("kinds", "share", "folds", "settings"),
    [
        # 4 of 8 slides are held out, the others make four folds.
        (Kinds(8, 0, 0), 0.2, 5, ["split.folds=4"]),
        # 9 of 10 are held out; two folds need two, so that 8 may be.
        (Kinds(10, 0, 0), 0.9, 2, ["split.test_share=0.8"]),
        # 7 of 8 are held out; even 4 leave no fifth fold.
        (Kinds(8, 0, 0), 0.9, 5, ["split.folds=4", "split.test_share=0.5"]),
        # 5 of 9 pure slides are held out: of the 4 others each label needs two. With 3 positive ones that fits.
        (Kinds(0, 3, 6), 0.7, 3, ["split.test_share=0.6"]),
        # One positive slide cannot be in the test set and in two folds.
        (Kinds(0, 1, 11), 0.2, 5, []),
        (Kinds(0, 3, 4), 0.2, 2, []),
    ],
)
def test_settings_that_allow_a_split(kinds, share, folds, settings):
    wanted = Wanted(kinds, share, folds)
    assert not wanted.possible
    assert wanted.settings() == settings


@pytest.mark.parametrize(
    ("kinds", "official", "more"),
    [
        (Kinds(0, 1, 11), False, "Give at least 2 more slides with label 1."),
        (Kinds(1, 0, 11), False, "Give at least 2 more slides with label 1."),
        (Kinds(0, 9, 2), False, "Give at least 1 more slide with label 0."),
        # Four are held out; each label needs two of the other slides, of which there are three.
        (Kinds(0, 3, 4), False, "Give at least 1 more slide."),
        (
            Kinds(2, 0, 0),
            False,
            f"{ONE_EACH} and 2 more slides.",
        ),
        (Kinds(0, 1, 8), True, "Give at least 1 more slide with label 1."),
    ],
)
def test_slides_that_are_missing(kinds, official, more):
    assert Wanted(kinds, 0.2, 2, official).more_slides("slides") == more


@pytest.mark.parametrize("seed", range(40))
def test_what_is_asked_for_is_enough_and_no_larger_setting_is(seed):
    rng = np.random.default_rng(seed)
    kinds = Kinds(*map(int, rng.integers(1, 9, 3)))
    wanted = Wanted(kinds, float(rng.choice([0.2, 0.5, 0.9])), int(rng.integers(2, 7)))
    if wanted.possible:
        return
    changed = {name: float(value) for name, _, value in (each[6:].partition("=") for each in wanted.settings())}
    if changed:
        share, folds = changed.get("test_share", wanted.test_share), int(changed.get("folds", wanted.folds))
        assert Wanted(wanted.kinds, share, folds).possible
        if len(changed) == 1 and "folds" in changed:
            assert not Wanted(wanted.kinds, share, folds + 1).possible
