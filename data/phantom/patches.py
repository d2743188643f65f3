"""The phantom: synthetic H&E patches of lymph nodes, grouped in slides, with known ground truth.

It is the built-in default data set and the test oracle. Its scores have no medical meaning. The table is planned in one
step, which is fast. Pixels are drawn from the plan in chunks (see ``data/phantom/drawing.py``), so memory stays bounded
for any number of patches.

References
----------
Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain vectors).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.phantom.drawing import draw
from histoblend.data.phantom.faults import apply_faults, apply_symmetry, plan_faults, plant_labels, scan_again
from histoblend.data.phantom.patch_record import (
    FRONT,
    NESTS,
    NO_TUMOUR,
    PATCH,
    SCATTERED,
    SHEET,
    TUMOUR_IN_CENTRE,
    TUMOUR_IN_RING,
)

PREVALENCE = 0.4
"""Share of positive patches, as in Kaggle's training set."""

DOMAINS = ("scanner-a", "scanner-b")


_SCRAMBLERS = np.array([0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93], dtype=np.uint64)


# Dominant tissue of a patch: its frequency, and the range of each share (uniform within the range).
TISSUES = pd.DataFrame(
    {
        "lymphoid": (0.40, (0.0, 0.2), (0.0, 0.0), (0.0, 0.3), (0.1, 0.35), (0.75, 1.0)),
        "follicle": (0.15, (0.0, 0.1), (0.0, 0.0), (0.0, 0.3), (0.45, 0.75), (0.6, 1.0)),
        "sinus": (0.17, (0.0, 0.3), (0.0, 0.0), (0.4, 0.9), (0.35, 0.7), (0.35, 0.8)),
        "stroma": (0.18, (0.45, 1.0), (0.0, 0.1), (0.0, 0.6), (0.1, 0.4), (0.3, 0.9)),
        "fat": (0.10, (0.1, 0.5), (0.35, 0.9), (0.0, 0.5), (0.1, 0.4), (0.3, 0.9)),
    },
    index=["weight", "stroma", "fat", "loose", "large", "cells"],
).T

# Optical density of haematoxylin and eosin in red, green, blue; Ruifrok & Johnston (2001).
RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


@dataclass(frozen=True)
class Phantom:
    """A planned synthetic data set; pixels are drawn on request.

    Attributes
    ----------
    table : DataFrame, one row per patch
        Columns of a source: ``patch_id`` (40 hexadecimal digits), ``label`` (0 or 1), ``slide`` (text, may be missing).
        Ground truth: ``domain`` (scanner), ``true_label``, ``true_slide``, ``tissue``,
        ``tumour_in_ring`` (tumour only around the centre), ``haematoxylin_angle`` and ``eosin_angle`` (degrees from
        Ruifrok's vector towards the other stain), ``haematoxylin_intensity`` and ``eosin_intensity`` (about 1),
        ``focus`` (sigma of the blur, pixels), ``cell_density`` (share of occupied cell sites), ``fault`` (a key of
        ``FAULTS`` or empty), ``duplicate_of`` (the patch_id of the original, or empty) and ``symmetry`` (0..7, see
        ``apply_symmetry``). A copy has the ground truth of its original.
    size : int
        Height and width of a patch in pixels.
    """

    table: pd.DataFrame
    size: int
    _seed: int = field(repr=False)
    _patches: np.ndarray = field(repr=False)
    _stains: np.ndarray = field(repr=False)
    _originals: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.table)

    def render(self, start: int, stop: int) -> np.ndarray:
        """Draw the patches of rows ``start`` to ``stop`` (excluded).

        The method is thread-safe, and the kernel releases the interpreter lock. The pixels of a row do not depend on
        the other rows of the call.

        Returns
        -------
        ndarray of shape (stop - start, size, size, 3), dtype uint8

        Raises
        ------
        IndexError
            If a row does not exist.
        """
        images, _ = self._draw(start, stop)
        for i in np.flatnonzero(self.table["fault"].iloc[start:stop] == "near-duplicate"):
            images[i] = scan_again(images[i], np.random.default_rng([self._seed, 9, start + int(i)]))
        return images

    def tumour_mask(self, row: int) -> np.ndarray:
        """Return the mask of tumour nuclei of one patch.

        Returns
        -------
        ndarray of shape (size, size), dtype bool
            Pixels that are at least half covered by a tumour nucleus.
        """
        return self._draw(row, row + 1)[1][0]

    def chunks(self, length: int = 256) -> Iterator[tuple[int, int]]:
        """Yield consecutive row ranges of at most ``length`` rows that cover the table."""
        return ((start, min(start + length, len(self))) for start in range(0, len(self), length))

    def _draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"Rows must be between 0 and {len(self)}; got {start} to {stop}.")
        originals = self._originals[start:stop]
        images, masks = draw(self._patches[originals], self._stains[originals], self.size)
        symmetries = self.table["symmetry"].to_numpy()[start:stop]
        for i in np.flatnonzero(symmetries):
            images[i] = apply_symmetry(images[i], int(symmetries[i]))
            masks[i] = apply_symmetry(masks[i], int(symmetries[i]))
        return images, masks


def phantom(
    n: int,
    *,
    slides: int,
    seed: int,
    difficulty: float = 0.5,
    confound: float = 0.0,
    faults: bool = False,
    size: int = 96,
) -> Phantom:
    """Plan a synthetic data set.

    Parameters
    ----------
    n : int
        Number of patches, at least ``slides``.
    slides : int
        Number of slides, at least 2. Slides come in pairs of the same size and prevalence, one from each scanner, so
        scanner and tumour are uncorrelated. Prevalence ranges from 0 to 1 across slides.
    seed : int
        Non-negative. The same arguments give the same pixels.
    difficulty : float
        From 0 to 1. At 0, tumour nuclei are large, pale and irregular, and slides look alike. At 1, tumour nuclei
        closely resemble large benign nuclei, tumour often occurs as single cells or just outside the centre, and slides
        differ strongly in stain and focus.
    confound : float
        Correlation (phi) between ``true_label`` and scanner, 0 to 1, as close as whole slides allow.
    faults : bool
        Plant ``FAULTS``, and remove the slide from ``SHARE_WITHOUT_SLIDE`` of the patches.
    size : int
        Height and width in pixels of about 1 µm, at least 32. Below 64, there is no room for tumour in the ring only.

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    _check(n, slides, seed, difficulty, confound, size)
    of_slides = _plan_slides(n, slides, np.random.default_rng([seed, 1]), difficulty, confound)
    slide = np.repeat(np.arange(slides), of_slides["patches"])
    positive = np.concatenate(
        [np.arange(m) < k for m, k in zip(of_slides["patches"], of_slides["positives"], strict=True)]
    )
    order = np.random.default_rng([seed, 2]).permutation(n)
    slide, positive = slide[order], positive[order]
    rng = np.random.default_rng([seed, 3])
    tissue = _choose_tissue(of_slides, slide, rng)
    patches = _plan_patches(of_slides.iloc[slide].reset_index(drop=True), positive, tissue, rng, difficulty, size)
    patches["key"] = _keys(seed, n)
    fault, originals, symmetry = plan_faults(positive, np.random.default_rng([seed, 4]), faults)
    apply_faults(patches, fault, np.random.default_rng([seed, 5]))
    angles = of_slides[["haematoxylin_angle", "eosin_angle", "tilt"]].to_numpy()
    stains = np.stack([_stain_vectors(*row) for row in angles])
    table = _table(of_slides, slide, tissue, patches, originals)
    table["fault"], table["symmetry"] = fault, symmetry
    plant_labels(table, originals, np.random.default_rng([seed, 6]), faults)
    return Phantom(table, size, seed, patches, stains[slide].astype(np.float32), originals)


def plan_pieces(n: int, *, seed: int, difficulty: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Plan n pieces of benign tissue of one slide, without bare glass, folds, fat or blood. They may have any size.

    Parameters
    ----------
    n : int
    seed : int
        Non-negative.
    difficulty : float
        See :func:`phantom`.

    Returns
    -------
    patches : ndarray of shape (n,), dtype PATCH
        Records for :func:`data.phantom.drawing.draw`.
    stains : ndarray of shape (n, 2, 3), dtype float32
    """
    _check(max(n, 2), 2, seed, difficulty, 0.0, 96)
    of_slides = _plan_slides(max(n, 2), 2, np.random.default_rng([seed, 1]), difficulty, 0.0)
    rng = np.random.default_rng([seed, 3])
    base = of_slides.iloc[np.zeros(n, int)].reset_index(drop=True)
    tissue = _choose_tissue(of_slides, np.zeros(n, int), rng)
    tissue[tissue == list(TISSUES.index).index("fat")] = 0
    patches = _plan_patches(base, np.zeros(n, bool), tissue, rng, difficulty, 96)
    patches["key"] = _keys(seed, n)
    patches["tumour"] = NO_TUMOUR
    patches["glass"] = patches["fold"] = patches["blood"] = 0
    stains = _stain_vectors(*of_slides[["haematoxylin_angle", "eosin_angle", "tilt"]].to_numpy()[0])
    return patches, np.repeat(stains[None].astype(np.float32), n, axis=0)


def _check(n: int, slides: int, seed: int, difficulty: float, confound: float, size: int) -> None:
    if slides < 2:
        raise InputError(f"slides must be at least 2; got {slides}.")
    if n < slides:
        raise InputError(f"n must be at least the number of slides ({slides}); got {n}.")
    if seed < 0:
        raise InputError(f"seed must not be negative; got {seed}.")
    for name, value in (("difficulty", difficulty), ("confound", confound)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} must be between 0 and 1; got {value}.")
    if size < 32:
        raise InputError(f"size must be at least 32, the size of the labelled centre; got {size}.")


def _plan_slides(n: int, slides: int, rng: np.random.Generator, difficulty: float, confound: float) -> pd.DataFrame:
    """Plan one row per slide: numbers of patches and positives, scanner, stain and appearance of tumour."""
    plan = _plan_prevalence(n, slides, rng, confound)
    spread = 0.4 + 1.2 * difficulty
    plan["haematoxylin_angle"] = rng.normal(0, 3.5 * spread, slides).clip(-12, 12)
    plan["eosin_angle"] = rng.normal(0, 3.5 * spread, slides).clip(-12, 12)
    plan["tilt"] = rng.normal(0, 2.0 * spread, slides).clip(-6, 6)
    plan["haematoxylin_intensity"] = np.exp(rng.normal(0, 0.11 * spread, slides))
    plan["eosin_intensity"] = 0.85 * np.exp(rng.normal(0, 0.14 * spread, slides))
    plan["focus"] = 0.52 * np.exp(rng.normal(0, 0.13 * spread, slides))
    plan["cells"] = rng.uniform(0.7, 1.0, slides)
    plan["tumour_radius"] = 7.5 - 1.9 * difficulty + rng.normal(0, 0.4 * spread, slides).clip(-0.7, 0.7)
    plan["large_radius"] = 4.1 + 0.7 * difficulty + rng.normal(0, 0.2 * spread, slides).clip(-0.4, 0.4)
    plan["irregularity"] = (0.14 - 0.09 * difficulty) * rng.uniform(0.6, 1.4, slides)
    plan["pale_density"] = 0.54 + rng.normal(0, 0.06 * spread, slides)
    plan["nucleoli"] = (0.95 - 0.7 * difficulty) * rng.uniform(0.5, 1.0, slides)
    plan["infiltrate"] = rng.uniform(0.1, 0.8, slides)
    return plan


def _plan_prevalence(n: int, slides: int, rng: np.random.Generator, confound: float) -> pd.DataFrame:
    """Plan the number of patches, the number of positives and the scanner of each slide."""
    pairs = (slides + 1) // 2
    pair = np.arange(slides) // 2
    weight = np.exp(rng.normal(0, 0.5, pairs))[pair]
    patches = 1 + _apportion(n - slides, weight)
    single_class = np.isin(pair, rng.permutation(pairs)[: round(confound * pairs)])
    prevalence = np.zeros(slides)
    domain = np.arange(slides) % 2
    mixed = rng.permutation(np.unique(pair[~single_class]))
    if len(mixed):
        # piecewise linear: 30 % of the slides without tumour, 10 % with tumour only, mean 0.4
        level = dict(zip(mixed, (np.arange(len(mixed)) + 0.5) / len(mixed) / 0.6 - 0.5, strict=True))
        levels = np.array([level[p] for p in pair[~single_class]])
        prevalence[~single_class] = _shift_to_mean(levels, patches[~single_class], PREVALENCE)
    chosen = rng.permutation(np.flatnonzero(single_class))
    midpoints = np.cumsum(patches[chosen]) - 0.5 * patches[chosen]
    domain[chosen] = prevalence[chosen] = midpoints < PREVALENCE * patches[chosen].sum()
    return pd.DataFrame({"patches": patches, "positives": np.rint(prevalence * patches).astype(int), "domain": domain})


def _apportion(total: int, weight: np.ndarray) -> np.ndarray:
    """Return integers that sum to the total and are proportional to the weights (largest remainder method)."""
    exact = total * weight / weight.sum()
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole


def _shift_to_mean(levels: np.ndarray, weight: np.ndarray, mean: float) -> np.ndarray:
    """Shift all levels by one number so that their weighted mean, after clipping to 0..1, is ``mean``."""
    low, high = -2.0, 2.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        if np.average(np.clip(levels + middle, 0, 1), weights=weight) < mean:
            low = middle
        else:
            high = middle
    return np.clip(levels + low, 0, 1)


def _choose_tissue(of_slides: pd.DataFrame, slide: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose the dominant tissue of each patch (a row of TISSUES); each slide has its own mixture."""
    mixture = rng.dirichlet(6.0 * TISSUES["weight"].to_numpy(dtype=float), len(of_slides)).cumsum(axis=1)
    return (rng.random(len(slide))[:, None] > mixture[slide]).sum(axis=1).clip(max=len(TISSUES) - 1)


def _plan_patches(
    base: pd.DataFrame,
    positive: np.ndarray,
    tissue: np.ndarray,
    rng: np.random.Generator,
    difficulty: float,
    size: int,
) -> np.ndarray:
    """Fill the records of the patches; ``base`` has, for each patch, the row of its slide."""
    n = len(base)
    patches = np.zeros(n, dtype=PATCH)
    for name in ("tumour_radius", "irregularity", "pale_density", "nucleoli", "large_radius"):
        patches[name] = base[name]
    patches["scanner"] = base["domain"]
    for name, spread in (("haematoxylin_intensity", 0.05), ("eosin_intensity", 0.07), ("focus", 0.08)):
        patches[name] = base[name] * np.exp(spread * rng.normal(size=n).clip(-2, 2))
    for name in ("stroma", "fat", "loose", "large", "cells"):
        low, high = np.array(TISSUES[name].tolist())[tissue].T
        patches[name] = rng.uniform(low, high)
    patches["cells"] *= base["cells"]
    patches["large"] *= 0.5 + difficulty
    patches["glass"] = np.where(rng.random(n) < 0.14, rng.uniform(0.1, 0.65, n), 0)
    patches["blood"] = np.where(rng.random(n) < 0.12, rng.uniform(1, 7, n), 0)
    patches["fold"] = np.where(rng.random(n) < 0.03, rng.uniform(0.4, 1.0, n), 0)
    # tumour around a negative centre: only on slides that have tumour, and if the ring is wide enough
    ring = ~positive & (base["positives"] > 0).to_numpy() & (rng.random(n) < 0.15 + 0.5 * difficulty) & (size >= 64)
    patches["tumour"] = np.where(positive, TUMOUR_IN_CENTRE, np.where(ring, TUMOUR_IN_RING, NO_TUMOUR))
    odds = np.array([0.05 + 0.2 * difficulty, 0.3 + 0.1 * difficulty, 0.35 - 0.3 * difficulty, 0.3])
    patches["pattern"] = rng.choice([SCATTERED, FRONT, SHEET, NESTS], size=n, p=odds / odds.sum())
    patches["infiltrate"] = (base["infiltrate"] * rng.uniform(0.5, 1.5, n)).clip(0, 1)
    return patches


def _keys(seed: int, n: int) -> np.ndarray:
    """Return the seed of each patch's random stream: the scrambled row number (splitmix64's finaliser)."""
    z: np.ndarray = np.random.SeedSequence([seed, 7]).generate_state(1, np.uint64) + np.arange(n, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def _table(
    of_slides: pd.DataFrame, slide: np.ndarray, tissue: np.ndarray, patches: np.ndarray, originals: np.ndarray
) -> pd.DataFrame:
    """Return the table of ids and ground truth; copies have the ground truth of their original."""
    names = np.array([f"slide-{i:03d}" for i in range(len(of_slides))], dtype=object)
    ids = _ids(patches["key"])
    shown, shown_slide = patches[originals], slide[originals]
    return pd.DataFrame(
        {
            "patch_id": ids,
            "label": (shown["tumour"] == TUMOUR_IN_CENTRE).astype(np.int8),
            "slide": names[slide],
            "domain": np.array(DOMAINS, dtype=object)[shown["scanner"]],
            "true_label": (shown["tumour"] == TUMOUR_IN_CENTRE).astype(np.int8),
            "true_slide": names[shown_slide],
            "tissue": np.array(TISSUES.index, dtype=object)[tissue[originals]],
            "tumour_in_ring": shown["tumour"] == TUMOUR_IN_RING,
            "haematoxylin_angle": of_slides["haematoxylin_angle"].to_numpy()[shown_slide],
            "eosin_angle": of_slides["eosin_angle"].to_numpy()[shown_slide],
            "haematoxylin_intensity": shown["haematoxylin_intensity"],
            "eosin_intensity": shown["eosin_intensity"],
            "focus": shown["focus"],
            "cell_density": shown["cells"],
            "duplicate_of": np.where(originals == np.arange(len(slide)), "", ids[originals]),
        }
    )


def _ids(keys: np.ndarray) -> np.ndarray:
    """Return ids of 40 hexadecimal digits, as in Kaggle's data, made of each key and two scrambled copies of it."""
    words = np.stack([keys, keys * _SCRAMBLERS[0], keys * _SCRAMBLERS[1]], axis=1).astype(">u8")
    digits = words.tobytes().hex()
    return np.array([digits[i : i + 40] for i in range(0, len(digits), 48)], dtype=object)


def _stain_vectors(haematoxylin_angle: float, eosin_angle: float, tilt: float) -> np.ndarray:
    """Return Ruifrok's unit vectors, each rotated towards the other and both tilted out of their plane (degrees)."""
    haematoxylin, eosin = RUIFROK / np.linalg.norm(RUIFROK, axis=1, keepdims=True)
    normal = np.cross(haematoxylin, eosin)
    normal /= np.linalg.norm(normal)
    vectors = []
    for stain, other, angle in ((haematoxylin, eosin, haematoxylin_angle), (eosin, haematoxylin, eosin_angle)):
        perpendicular = other - (other @ stain) * stain
        perpendicular /= np.linalg.norm(perpendicular)
        rotated = np.cos(np.radians(angle)) * stain + np.sin(np.radians(angle)) * perpendicular
        vector = np.maximum(np.cos(np.radians(tilt)) * rotated + np.sin(np.radians(tilt)) * normal, 0.01)
        vectors.append(vector / np.linalg.norm(vector))
    return np.array(vectors)
