"""A probe beside the steps: what every model says of held-out patches whose stains were altered, slide by slide."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.special import expit
from skimage.color import hed_from_rgb, rgb_from_hed

from histoblend.data.splits import is_known
from histoblend.models.heads.registry import load_head
from histoblend.models.inspection.stain import (
    VECTORS,
    StainGroups,
    StainView,
    group_slides,
    group_table,
    shift_curves,
    stain_families,
    stain_groups,
)
from histoblend.models.names import ALONE, split_model_name
from histoblend.pipelines.config import Config
from histoblend.pipelines.layout import COLUMNS, ENSEMBLE, MODEL, PREDICTIONS, VALUES
from histoblend.pipelines.runtime.artefacts import Outcome, StepSpec
from histoblend.pipelines.tables import FeatureSets, chosen_families, embedding_of, read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: How far stains are scaled and shifted at most; the network's training alters them by 0.1 unless told otherwise.
STRENGTHS = (0.05, 0.1, 0.2)
#: Draws at each strength: the second shifts every slide the other way.
SIGNS = (1, -1)

#: Held-out patches that are judged, and the slides that they come from, at most: the fine-tuned network takes a tenth
#: of a second for each patch and draw.
MOST_PATCHES = 112
MOST_SLIDES = 40
#: Patches of a slide that slide context compares with, the judged ones included, at most.
SLIDE_PATCHES = 32

#: Two stain vectors with less than this as the sine of their angle cannot be told apart.
FLATTEST = 0.05

#: Patches that one thread takes at a time.
SHARD = 16

Advance = Callable[[int], None]


def stain_spec(config: Config, inputs: Mapping[str, str]) -> StepSpec:
    """What the probe depends on; ``inputs`` are the digests of the patches, of the feature tables and of all models."""
    own = (
        "pipelines/analysis/stain.py",
        "pipelines/tables.py",
        "pipelines/steps/outputs.py",
        "models/inspection/stain.py",
    )
    section = {
        "strengths": list(STRENGTHS),
        "patches": MOST_PATCHES,
        "slides": MOST_SLIDES,
        "slide_patches": SLIDE_PATCHES,
    }
    # Not the user's choice: other numbers in another version rebuild, and are not another configuration.
    return StepSpec(
        "stain",
        "probes/stain",
        ("data", "features", "models", *own),
        {},
        {**inputs, "design": json.dumps(section)},
        config.seed,
    )


def why_no_probe(table: pd.DataFrame) -> str:
    """Say why stains cannot be shifted on held-out slides; empty where they can.

    Parameters
    ----------
    table : DataFrame
        ``label, slide, split``.
    """
    test = table[table["split"] == "test"]
    if test.empty:
        return "No slides were held out, so there is nothing to shift stains on that no model has learned from."
    if test["slide"].nunique() + test["slide"].isna().sum() < 2:
        return "Only one slide was held out: it takes two or more to tell what a shift of stain does between slides."
    if test["label"].nunique() < 2:
        return "The held-out slides hold one class only, so no ranking of them can be judged."
    return ""


@dataclass(frozen=True)
class Sample:
    """Held-out patches that are judged, and others of their slides.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Rows of the table, the judged ones first.
    judged : int
        How many are judged; the rest are there for slide context to compare with.
    """

    rows: np.ndarray
    judged: int


def choose_sample(table: pd.DataFrame, seed: int) -> Sample:
    """Choose held-out patches evenly over the held-out slides, each slide's in its own share of positives.

    Of more than `MOST_SLIDES` slides some are drawn at random. Small slides give all that they have, and leave the rest
    to the others. A patch without a slide is a slide of its own.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide, split``.
    seed : int

    Returns
    -------
    Sample
    """
    rng = np.random.default_rng(seed)
    test = table[table["split"] == "test"]
    parts = [
        test.index.to_numpy()[rows] for rows in pd.Series(slide_names(test)).groupby(slide_names(test)).indices.values()
    ]
    most = MOST_SLIDES if test["slide"].notna().any() else MOST_PATCHES
    if len(parts) > most:
        parts = [parts[place] for place in np.sort(rng.choice(len(parts), most, replace=False))]
    quota = _quota([len(part) for part in parts], MOST_PATCHES)
    labels = table["label"].to_numpy()
    judged, others = [], []
    for part in parts:
        spread = _spread(rng.permutation(part), labels, quota)
        judged.append(spread)
        rest = np.setdiff1d(part, spread)
        others.append(rng.permutation(rest)[: max(SLIDE_PATCHES - len(spread), 0)])
    chosen = np.concatenate(judged)
    return Sample(np.concatenate([np.sort(chosen), np.sort(np.concatenate(others))]), len(chosen))


def slide_names(table: pd.DataFrame) -> np.ndarray:
    """Slide of each patch, or the patch itself where it has none, ndarray of str."""
    own = "patch:" + table["patch_id"].astype(str)
    return table["slide"].astype(object).where(table["slide"].notna(), own).astype(str).to_numpy()


def _quota(sizes: list[int], most: int) -> int:
    """Largest number a slide with which all together stay within ``most``; at least one."""
    quota = 1
    while sum(min(size, quota + 1) for size in sizes) <= most and quota < max(sizes):
        quota += 1
    return quota


def _spread(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """So many rows, positives in their own share, rounded, and both classes where there are both."""
    if len(rows) <= count:
        return rows
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    # From the first to the last: with two or more, both classes of a mixed slide are in.
    return ordered[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]


@dataclass(frozen=True)
class Alteration:
    """One way to alter the stains of n patches: their optical density (natural logarithm) times a matrix, plus a shift.

    Attributes
    ----------
    kind : str
        "shift", by the strength at random, or "restain", to the stain vectors of the other group of slides.
    strength : float
        0 leaves the patches as they are.
    draw : int
    turns : ndarray of shape (n, 3, 3)
    offsets : ndarray of shape (n, 3)
    """

    kind: str
    strength: float
    draw: int
    turns: np.ndarray
    offsets: np.ndarray

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Alter patches (n, height, width, 3) uint8, which are not modified."""
        if self.strength == 0:
            return patches
        # +1: black stays finite.
        density = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)[patches.reshape(len(patches), -1, 3)]
        altered = density @ self.turns.astype(np.float32) + self.offsets.astype(np.float32)[:, None]
        levels = np.rint(256.0 * np.exp(-altered) - 1.0)
        return np.clip(levels, 0, 255).astype(np.uint8).reshape(patches.shape)


def shift(ways: np.ndarray, strength: float, draw: int) -> Alteration:
    """Scale and shift haematoxylin, eosin and the residual, all patches of a slide alike.

    What :func:`models.augment.jitter_stains` draws for each patch is given here, as stain differs between slides.

    Parameters
    ----------
    ways : ndarray of shape (n, 6)
        From :func:`directions`.
    strength : float
        Every stain's amount ``c`` becomes ``(1 + strength · way) c + strength · way'``.
    draw : int
        Place in `SIGNS`.

    References
    ----------
    Tellez et al. (2018), IEEE Trans Med Imaging 37(9):2126-2136.
    """
    moves = strength * SIGNS[draw] * ways
    turns = np.einsum("ij,nj,jk->nik", hed_from_rgb, 1 + moves[:, :3], rgb_from_hed)
    return Alteration("shift", strength, draw, turns, moves[:, 3:] @ rgb_from_hed)


def restain(slides: np.ndarray, groups: StainGroups) -> Alteration:
    """Give each slide the stain vectors of the other group of slides, and leave the amounts of its stains alone.

    The other group's vectors are the medians over its slides. Slides in no group, and slides whose own two vectors are
    almost one, stay as they are.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
    groups : StainGroups
        With the slides' stain vectors.
    """
    known = groups.slides.set_index("slide")
    other = {name: _frame(known.loc[known.group != name, list(VECTORS)].median().to_numpy()) for name in ("A", "B")}
    turns = {}
    for name in set(slides):
        turns[name] = np.eye(3)
        if name in known.index:
            own = _frame(known.loc[name, list(VECTORS)].to_numpy(dtype=float))
            if abs(np.linalg.det(own)) >= FLATTEST:
                turns[name] = np.linalg.inv(own) @ other[known.group[name]]
    return Alteration("restain", 1.0, 0, np.stack([turns[name] for name in slides]), np.zeros((len(slides), 3)))


def _frame(vectors: np.ndarray) -> np.ndarray:
    """Haematoxylin, eosin and what is at right angles to both: rows of length 1, their volume the sine of the angle."""
    pair = vectors.reshape(2, 3) / np.linalg.norm(vectors.reshape(2, 3), axis=1, keepdims=True)
    across = np.cross(*pair)
    size = np.linalg.norm(across)
    return np.vstack([pair, across / size if size > 0 else across])


def directions(slides: np.ndarray, seed: int) -> np.ndarray:
    """Which way the stains of each patch's slide are scaled and shifted.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
    seed : int

    Returns
    -------
    ndarray of shape (n, 6), dtype float64
        Three gains and three shifts in −1 to 1, by which a strength is multiplied; the same for all patches of a slide,
        whatever other slides there are.
    """
    of = {name: np.random.default_rng([zlib.crc32(name.encode()), seed]).uniform(-1, 1, 6) for name in set(slides)}
    return np.stack([of[name] for name in slides])


def alterations(slides: np.ndarray, groups: StainGroups | None, seed: int) -> list[Alteration]:
    """All ways in which patches of these slides are altered; the first leaves them as they are."""
    ways = directions(slides, seed)
    found = [shift(ways, 0.0, 0)]
    found += [shift(ways, strength, draw) for strength in STRENGTHS for draw in range(len(SIGNS))]
    return found if groups is None else [*found, restain(slides, groups)]


def probe_stain(run: Run, folder: Path) -> Outcome:
    """Write what every model says of the sample, as it is and with altered stains, into ``folder``.

    ``predictions.parquet`` holds ``patch_id, slide, label, alteration, strength, draw, prob_<model>``, a row a patch
    and alteration; strength 0 is the patches as they are.
    """
    sample = choose_sample(run.patches.table, run.config.seed)
    table = run.patches.table.iloc[sample.rows].reset_index(drop=True)
    members = _Members(run, table, sample.judged)
    pixels = np.asarray(run.patches.pixels[sample.rows])
    chosen = alterations(slide_names(table), _divide_slides(run), run.config.seed)
    shown = table.iloc[: sample.judged][["patch_id", "slide", "label"]]
    parts = []
    with run.screen.progress("altered stains", len(chosen) * members.work) as progress:
        for number, alter in enumerate(chosen):
            found = members.predict(alter(pixels), folder / f"work-{number}", progress)
            how = shown.assign(alteration=alter.kind, strength=alter.strength, draw=alter.draw)
            parts.append(how.assign(**found))
    pd.concat(parts, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
    for number in range(len(chosen)):
        shutil.rmtree(folder / f"work-{number}")
    notes = {"patches": sample.judged, "slides": len(set(slide_names(shown))), "beside": len(pixels) - sample.judged}
    return Outcome(sample.judged * len(chosen), notes)


class _Members:
    """Every model of a run, ready to predict given pixels of a sample of its patches."""

    def __init__(self, run: Run, table: pd.DataFrame, judged: int) -> None:
        self.run, self.table, self.judged = run, table, judged
        heads, manifest = run.heads
        self.heads = {name: load_head(heads / name) for name in manifest["notes"]["models"]}
        self.families = chosen_families(run.config) if "features" in run.tables else ()
        self.embed = embedding_of(run) if "embeddings" in run.tables else None
        self.cnn, self.ensemble = None, None
        if run.fine_tuned:
            from histoblend.models.cnn import open_cnn

            self.cnn = open_cnn(run.cnn[0] / MODEL)
        if run.combined:
            from histoblend.models.ensemble import Ensemble

            stored = json.loads((run.ensemble[0] / ENSEMBLE).read_text(encoding="utf-8"))
            self.ensemble = Ensemble.from_dict(stored["default"])

    @property
    def work(self) -> int:
        """Rows that are computed for one draw, for the progress bar."""
        networks = (self.embed is not None) + (self.cnn is not None)
        return len(self.table) * bool(self.families) + self.judged * networks

    def predict(self, pixels: np.ndarray, folder: Path, progress: Advance) -> dict[str, np.ndarray]:
        """Probability of each judged patch by every model, ``prob_<model>`` to ndarray of shape (judged,), float64."""
        whole, judged = self._tables(pixels, folder, progress)
        slides = self.table["slide"]
        # Context compares with all patches of the sample's slides; the others look at the judged ones alone.
        sets = FeatureSets(self.run.config, judged, slides.iloc[: self.judged])
        context = FeatureSets(self.run.config, whole, slides)
        found = {}
        for model, head in self.heads.items():
            name = model.partition("_")[2]
            values = context[name][0][: self.judged] if name == "context" else sets[name][0]
            found[f"prob_{model}"] = head.predict_proba(values)[:, 1]
        if self.cnn is not None:
            log_odds = self._extract(
                self.cnn, pixels[: self.judged], folder / "cnn", 1, self._engine(self.run.cnn), progress
            )
            found["prob_cnn"] = expit(np.asarray(log_odds)[:, 0].astype(np.float64))
        if self.ensemble is not None:
            members = np.column_stack([found[f"prob_{member}"] for member in self.ensemble.members])
            found["prob_ensemble"] = self.ensemble.predict(members)
        return found

    def _tables(self, pixels: np.ndarray, folder: Path, progress: Advance) -> tuple[dict[str, Path], dict[str, Path]]:
        """Feature tables of all patches and of the judged ones, in folders as steps 2 and 3 write them."""
        from histoblend.features.handcrafted.families import columns, compute

        whole, judged = {}, {}
        if self.families:
            names = [column.name for column in columns(self.families)]
            by = partial(compute, families=self.families)
            values = self._extract(by, pixels, folder / "features", len(names), self.run.workers, progress)
            whole["features"] = _describe(folder / "features", names)
            judged["features"] = _describe(folder / "judged", names, values[: self.judged])
        if self.embed is not None:
            names = list(self.embed.columns)
            some = pixels[: self.judged]
            workers = self._engine(self.run.embeddings)
            self._extract(self.embed, some, folder / "embeddings", len(names), workers, progress)
            judged["embeddings"] = _describe(folder / "embeddings", names)
        return whole, judged

    def _engine(self, step: tuple[Path, dict[str, Any]]) -> int:
        """Threads for a step's network: ONNX Runtime gets one session for each of ours; Keras runs its own."""
        return self.run.workers if step[1]["notes"]["engine"]["name"] == "onnx" else 1

    @staticmethod
    def _extract(
        compute: Any, pixels: np.ndarray, folder: Path, width: int, workers: int, progress: Advance
    ) -> np.ndarray:
        from histoblend.features.extract import extract_shards

        return extract_shards(
            compute, pixels, folder, width, shard_size=SHARD, workers=workers, prefer="threads", progress=progress
        )


def _describe(folder: Path, names: list[str], values: np.ndarray | None = None) -> Path:
    """Name the columns of a table in a folder, and write its values where they are given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COLUMNS).write_text(json.dumps(names), encoding="utf-8")
    if values is not None:
        np.save(folder / VALUES, values)
    return folder


def stain_view(run: Run, predictions: pd.DataFrame, steps: pd.DataFrame) -> StainView:
    """What the report shows of stain: groups of slides, who tells them apart, and what shifted stains do.

    Parameters
    ----------
    run : Run
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>`` of every model.
    steps : DataFrame
        The ladder.
    """
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    models = [model for model in dict.fromkeys(steps["model"]) if split_model_name(model)[0] != "prevalence"]
    probe = run.stain_probe
    shifted = None
    if probe is not None:
        thresholds = dict(zip(steps["model"], steps["threshold"], strict=True))
        shifted = shift_curves(pd.read_parquet(probe[0] / PREDICTIONS), models, thresholds, **options)
    trained = run.config.cnn.jitter if run.fine_tuned and run.config.cnn.stain == "jitter" else 0.0
    view = StainView(shifted=shifted, absent=why_no_probe(run.patches.table), trained=trained)
    groups = _divide_slides(run)
    if groups is None:
        return view
    rungs = [model for model in models if split_model_name(model)[0] not in ALONE]
    slides = run.patches.table["slide"].astype(object)
    families = []
    for folder, _ in run.tables.values():
        values, columns = read_values(folder)
        families.append(stain_families(values, columns, groups, slides, **options))
    return replace(
        view,
        groups=groups,
        scores=group_table(groups, predictions, rungs, **options),
        slides=group_slides(groups, predictions, rungs),
        families=pd.concat(families).sort_values("auc", ascending=False, kind="stable", ignore_index=True),
    )


def _divide_slides(run: Run) -> StainGroups | None:
    """Slides in two by their stain; None where it cannot be told."""
    if "features" not in run.tables:
        return None
    values, columns = read_values(run.tables["features"][0])
    table = run.patches.table
    slides = table["slide"].where(is_known(table["slide"]))
    return stain_groups(values, columns, table["label"].to_numpy(), slides, seed=run.config.seed)
