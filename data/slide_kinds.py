"""Slides counted by the labels that they hold: whether a split of them exists, and what would make one possible."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

#: Fewest slides in a test set, whatever the wanted share.
FEWEST_TEST = 4

#: Folds that must hold each label at least: only then the others keep it, whichever fold is held out.
FEWEST_FOLDS = 2

_SINGULAR = {"slides": "slide", "patches": "patch"}

#: Slides that a message asks for at most; beyond that, it asks for nothing.
MOST_MORE = 100_000


@dataclass(frozen=True)
class Kinds:
    """How many slides hold which labels.

    Attributes
    ----------
    mixed, positive, negative : int
        Slides with both labels, with 1 only and with 0 only.
    """

    mixed: int
    positive: int
    negative: int

    @classmethod
    def of(cls, positives: np.ndarray, negatives: np.ndarray) -> Kinds:
        """Count slides by how many positive and negative patches each holds."""
        has, lacks = np.asarray(positives) > 0, np.asarray(negatives) > 0
        return cls(int((has & lacks).sum()), int((has & ~lacks).sum()), int((~has & lacks).sum()))

    @property
    def slides(self) -> int:
        """All slides."""
        return self.mixed + self.positive + self.negative

    @property
    def parts(self) -> int:
        """Most parts that can hold both labels: a mixed slide makes one, and so do a positive and a negative one."""
        return self.mixed + min(self.positive, self.negative)

    @property
    def drawn_with_both(self) -> bool:
        """Whether most draws of as many slides, with replacement, hold both labels."""
        pure = np.array([self.positive, self.negative]) / max(1, self.slides)
        return bool((pure**self.slides).sum() < 0.5)

    def words(self, noun: str) -> str:
        """Name the numbers; ``noun`` is "slides" or what stands for them."""
        named = noun if self.slides != 1 else _SINGULAR[noun]
        return (
            f"{self.slides} {named}, {self.mixed + self.positive} with tumour (label 1), "
            f"{self.mixed + self.negative} with label 0, {self.mixed} of them with both"
        )


@dataclass(frozen=True)
class Layout:
    """Which kinds of slides bring both labels to the test set and to folds; every other slide may be anywhere.

    Attributes
    ----------
    test_mixed : bool
        The test set gets a mixed slide; else a positive and a negative one.
    mixed, pairs : int
        Folds that get a mixed slide, and folds that get a positive and a negative one.
    """

    test_mixed: bool
    mixed: int
    pairs: int


def layouts(kinds: Kinds, held_out: int, covered: int) -> list[Layout]:
    """Every way to bring both labels to a test set and to as many folds as wanted.

    Parameters
    ----------
    kinds : Kinds
    held_out : int
        Slides of the test set.
    covered : int
        Folds that shall hold both labels.

    Returns
    -------
    list of Layout
        Empty exactly where no choice of ``held_out`` slides does it: the parts of any split that does can be read as
        one of these.
    """
    pure = min(kinds.positive, kinds.negative)
    return [
        Layout(test_mixed, mixed, covered - mixed)
        for test_mixed in (True, False)
        for mixed in range(max(0, covered - pure), min(covered, kinds.mixed) + 1)
        if test_mixed + mixed <= kinds.mixed
        and (not test_mixed) + covered - mixed <= pure
        and (1 if test_mixed else 2) <= held_out
        and 2 * covered - mixed <= kinds.slides - held_out
    ]


def most_covered(kinds: Kinds, held_out: int, folds: int) -> int:
    """Most folds that can hold both labels beside a test set that does; 0 where no split is possible.

    A split is possible where each fold gets a slide and each label comes to two folds or more. Two pairs of slides with
    both labels are enough for that: they stay in two folds, or one of a pair moves to a fold that would be empty.
    """
    if kinds.slides < held_out + folds:
        return 0
    most = min(folds, kinds.parts - 1)
    return next((count for count in range(most, FEWEST_FOLDS - 1, -1) if layouts(kinds, held_out, count)), 0)


@dataclass(frozen=True)
class Wanted:
    """A split that is asked for.

    Attributes
    ----------
    kinds : Kinds
        Of all slides; of those of the training part where the data set came with a split.
    test_share : float
    folds : int
    official : bool
        The data set came with its test set.
    """

    kinds: Kinds
    test_share: float
    folds: int
    official: bool = False

    @property
    def held_out(self) -> int:
        """Slides that are held out."""
        return 0 if self.official else held_out_slides(self.test_share, self.kinds.slides)

    @property
    def possible(self) -> bool:
        """Whether there is such a split."""
        if self.official:
            return self.kinds.slides >= self.folds and self.kinds.parts >= FEWEST_FOLDS
        return most_covered(self.kinds, self.held_out, self.folds) > 0

    def problem(self, noun: str) -> str:
        """Say why there is none, in a sentence; ``noun`` is "slides" or what stands for them."""
        kinds, held_out, folds = self.kinds, self.held_out, self.folds
        if kinds.slides < held_out + folds:
            return (
                f"{folds} folds and {held_out} test {noun} need at least {held_out + folds} {noun}; got {kinds.slides}."
            )
        got = f"got {kinds.words(noun)}."
        if self.official:
            return f"the training part of the official split must hold each label on at least 2 {noun}; {got}"
        if kinds.parts < FEWEST_FOLDS:
            return f"no choice of {held_out} test {noun} leaves both labels on both sides; {got}"
        return (
            f"{folds} folds must hold patches and leave both labels to learn from, whichever is held out, and so must "
            f"{held_out} test {noun}; {got}"
        )

    def settings(self) -> list[str]:
        """Settings that make it possible, as small a change as may be; none where neither folds nor test share do.

        Fewer folds and fewer test slides never make a split impossible, so that the ends of both ranges tell.
        """
        fewest = self if self.official else replace(self, test_share=share_of(FEWEST_TEST, self.kinds.slides))
        if folds := self._most_folds():
            return [f"split.folds={folds}"]
        if fewest.possible:
            return [f"split.test_share={self._largest_share()}"]
        if folds := fewest._most_folds():
            return [f"split.folds={folds}", f"split.test_share={replace(self, folds=folds)._largest_share()}"]
        return []

    def _most_folds(self) -> int:
        """Most folds below those asked for with which there is a split; 0 for none."""
        fewer = range(self.folds - 1, FEWEST_FOLDS - 1, -1)
        return next((folds for folds in fewer if replace(self, folds=folds).possible), 0)

    def _largest_share(self) -> float:
        """Largest test share below the one asked for with which there is a split, where one has."""
        low, high = FEWEST_TEST, self.held_out
        while high - low > 1:
            middle = (low + high) // 2
            fits = replace(self, test_share=share_of(middle, self.kinds.slides)).possible
            low, high = (middle, high) if fits else (low, middle)
        return share_of(low, self.kinds.slides)

    def more_slides(self, noun: str) -> str:
        """Say which slides to add so that it is possible."""
        kinds, rarest = self.kinds, FEWEST_FOLDS + (not self.official)
        positive = max(0, rarest - kinds.mixed - kinds.positive)
        negative = max(0, rarest - kinds.mixed - kinds.negative)
        for more in range(MOST_MORE):
            grown = Kinds(kinds.mixed, kinds.positive + positive, kinds.negative + negative + more)
            if replace(self, kinds=grown).possible:
                break
        else:
            return f"Give more {noun} with each label, and a smaller split.test_share."
        asked = [
            f"{count} more {noun if count > 1 else _SINGULAR[noun]}{words}"
            for count, words in ((positive, " with label 1"), (negative, " with label 0"), (more, ""))
            if count
        ]
        return f"Give at least {' and '.join(asked)}."


def held_out_slides(test_share: float, slides: int) -> int:
    """Slides that a test set of this share has."""
    return max(FEWEST_TEST, round(test_share * slides))


def share_of(held_out: int, slides: int) -> float:
    """Shortest share that holds out so many slides."""
    return next(
        share
        for digits in range(1, 18)
        if (share := round(held_out / slides, digits)) > 0 and held_out_slides(share, slides) == held_out
    )
