"""Slides counted by the labels that they hold: is a split possible, and what would make it possible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: Fewest slides in a test set, regardless of the requested share.
FEWEST_TEST = 4

#: Fewest folds that must hold each label. With fewer, holding out one fold could remove a label from the others.
FEWEST_FOLDS = 2

_SINGULAR = {"slides": "slide", "patches": "patch"}

#: Most slides that a message asks the user to add; if more are needed, it gives no number.
MAX_MORE = 100_000


@dataclass(frozen=True)
class SlideCounts:
    """How many slides hold which labels.

    Attributes
    ----------
    mixed, positive, negative : int
        Slides with both labels, with label 1 only and with label 0 only.
    """

    mixed: int
    positive: int
    negative: int

    @classmethod
    def of(cls, positives: np.ndarray, negatives: np.ndarray) -> SlideCounts:
        """Count slides, given the number of positive and of negative patches in each."""
        has_positive, has_negative = np.asarray(positives) > 0, np.asarray(negatives) > 0
        return cls(
            int((has_positive & has_negative).sum()),
            int((has_positive & ~has_negative).sum()),
            int((~has_positive & has_negative).sum()),
        )

    @property
    def slides(self) -> int:
        """Total number of slides."""
        return self.mixed + self.positive + self.negative

    @property
    def parts(self) -> int:
        """Most parts that can hold both labels: one per mixed slide, and one per pair of a positive and a negative."""
        return self.mixed + min(self.positive, self.negative)

    @property
    def most_draws_hold_both(self) -> bool:
        """Whether most draws of this many slides, with replacement, hold both labels."""
        pure = np.array([self.positive, self.negative]) / max(1, self.slides)
        return bool((pure**self.slides).sum() < 0.5)

    def words(self, noun: str) -> str:
        """Describe the counts; ``noun`` is "slides" or, if patches are counted as slides, "patches"."""
        named = noun if self.slides != 1 else _SINGULAR[noun]
        return (
            f"{self.slides} {named}, {self.mixed + self.positive} with tumour (label 1), "
            f"{self.mixed + self.negative} with label 0, {self.mixed} of them with both"
        )


@dataclass(frozen=True)
class Layout:
    """How both labels get into the test set and into folds; all other slides may be anywhere.

    Attributes
    ----------
    test_mixed : bool
        The test set gets a mixed slide; otherwise it gets a positive and a negative one.
    mixed, pairs : int
        Folds that get a mixed slide, and folds that get a positive and a negative one.
    """

    test_mixed: bool
    mixed: int
    pairs: int


def layouts(counts: SlideCounts, held_out: int, covered: int) -> list[Layout]:
    """List every way to get both labels into the test set and into ``covered`` folds.

    Parameters
    ----------
    counts : SlideCounts
    held_out : int
        Number of slides in the test set.
    covered : int
        Number of folds that must hold both labels.

    Returns
    -------
    list of Layout
        Empty exactly if no choice of ``held_out`` slides works, because every split that works follows one of these
        layouts.
    """
    pure = min(counts.positive, counts.negative)
    return [
        Layout(test_mixed, mixed, covered - mixed)
        for test_mixed in (True, False)
        for mixed in range(max(0, covered - pure), min(covered, counts.mixed) + 1)
        if test_mixed + mixed <= counts.mixed
        and (not test_mixed) + covered - mixed <= pure
        and (1 if test_mixed else 2) <= held_out
        and 2 * covered - mixed <= counts.slides - held_out
    ]


def most_covered(counts: SlideCounts, held_out: int, folds: int) -> int:
    """Most folds that can hold both labels if the test set holds both too; 0 if no split is possible.

    A split is possible if each fold gets a slide and each label is in at least two folds. Two pairs of slides with both
    labels are enough: they stay in two folds, or one slide of a pair moves to a fold that would be empty.
    """
    if counts.slides < held_out + folds:
        return 0
    most = min(folds, counts.parts - 1)
    return next((count for count in range(most, FEWEST_FOLDS - 1, -1) if layouts(counts, held_out, count)), 0)


@dataclass(frozen=True)
class SplitRequest:
    """A requested split.

    Attributes
    ----------
    counts : SlideCounts
        Counts of all slides, or of those in the training part if the data set has an official split.
    test_share : float
    folds : int
    official : bool
        Whether the data set has an official test set.
    """

    counts: SlideCounts
    test_share: float
    folds: int
    official: bool = False

    @property
    def held_out(self) -> int:
        """Number of slides in the test set that is drawn."""
        return 0 if self.official else held_out_slides(self.test_share, self.counts.slides)

    @property
    def possible(self) -> bool:
        """Whether such a split exists."""
        if self.official:
            return self.counts.slides >= self.folds and self.counts.parts >= FEWEST_FOLDS
        return most_covered(self.counts, self.held_out, self.folds) > 0

    def problem(self, noun: str) -> str:
        """Say in a sentence why no such split exists; ``noun`` is "slides" or "patches"."""
        counts, held_out, folds = self.counts, self.held_out, self.folds
        if counts.slides < held_out + folds:
            return (
                f"{folds} folds and {held_out} test {noun} need at least {held_out + folds} {noun}; "
                f"got {counts.slides}."
            )
        got = f"got {counts.words(noun)}."
        if self.official:
            return f"the training part of the official split must hold each label on at least 2 {noun}; {got}"
        if counts.parts < FEWEST_FOLDS:
            return (
                f"no choice of {held_out} test {noun} leaves both labels in both the test and the training part; {got}"
            )
        return (
            f"no choice of {held_out} test {noun} and {folds} folds keeps both labels in the test set and in the "
            f"training data of every fold; {got}"
        )

    def settings(self) -> list[str]:
        """Return the smallest change of settings that makes the split possible; empty if folds and share cannot.

        Fewer folds and fewer test slides never make a split impossible, so checking the ends of both ranges is enough.
        """
        fewest = self if self.official else replace(self, test_share=share_of(FEWEST_TEST, self.counts.slides))
        if folds := self._most_folds():
            return [f"split.folds={folds}"]
        if fewest.possible:
            return [f"split.test_share={self._largest_share()}"]
        if folds := fewest._most_folds():
            return [f"split.folds={folds}", f"split.test_share={replace(self, folds=folds)._largest_share()}"]
        return []

    def _most_folds(self) -> int:
        """Largest number of folds, below the requested one, that makes the split possible; 0 if none does."""
        fewer = range(self.folds - 1, FEWEST_FOLDS - 1, -1)
        return next((folds for folds in fewer if replace(self, folds=folds).possible), 0)

    def _largest_share(self) -> float:
        """Largest test share, below the requested one, that makes the split possible; assumes that one does."""
        low, high = FEWEST_TEST, self.held_out
        while high - low > 1:
            middle = (low + high) // 2
            fits = replace(self, test_share=share_of(middle, self.counts.slides)).possible
            low, high = (middle, high) if fits else (low, middle)
        return share_of(low, self.counts.slides)

    def more_slides(self, noun: str) -> str:
        """Say which slides to add to make the split possible."""
        counts, least_of_each = self.counts, FEWEST_FOLDS + (not self.official)
        positive = max(0, least_of_each - counts.mixed - counts.positive)
        negative = max(0, least_of_each - counts.mixed - counts.negative)
        for more in range(MAX_MORE):
            increased = SlideCounts(counts.mixed, counts.positive + positive, counts.negative + negative + more)
            if replace(self, counts=increased).possible:
                break
        else:
            return f"Add more {noun} with each label, and use a smaller split.test_share."
        additions = [
            f"{count} more {noun if count > 1 else _SINGULAR[noun]}{words}"
            for count, words in ((positive, " with label 1"), (negative, " with label 0"), (more, ""))
            if count
        ]
        return f"Add at least {' and '.join(additions)}."


def held_out_slides(test_share: float, slides: int) -> int:
    """Number of slides in a test set of this share."""
    return max(FEWEST_TEST, round(test_share * slides))


def share_of(held_out: int, slides: int) -> float:
    """Return the share with the fewest digits that holds out this number of slides."""
    return next(
        share
        for digits in range(1, 18)
        if (share := round(held_out / slides, digits)) > 0 and held_out_slides(share, slides) == held_out
    )
