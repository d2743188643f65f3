"""New patches: a folder of image files to a table of probabilities, in shards that survive an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from data.errors import InputError
from data.files import stamp
from data.folder import UnlabelledImages
from data.labels import slide_map
from data.patches import Source
from features.context import ENOUGH, FEWEST
from models.bundle import Bundle, open_bundle
from models.predictor import FLAGS, Blend, Predictor, choose_blends, needs_slides, open_predictor
from pipelines.console import Screen
from pipelines.provenance import code_digest, library_versions

#: Patches worked on at a time by each worker: 256 of 96 × 96 are 7 MB, their features a few more.
SHARD = 256
POINT = "youden"

#: Exit status where files were skipped.
SKIPPED_STATUS = 3

#: Libraries of which another version may change a prediction's last digits.
COMPARED = (
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "numba",
    "xgboost-cpu",
    "xgboost",
    "onnxruntime",
    "pillow",
)

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Options:
    """What a prediction depends on beside the bundle and the patches.

    Attributes
    ----------
    model : str
        See :func:`models.predictor.choose_blends`.
    point : str
        Operating point whose threshold makes a label of a probability.
    prevalence : float
        Share of positives where the patches come from; 0 to leave probabilities as they are.
    workers : int
    shard : int
        Patches worked on at a time. No number depends on it, nor on the workers.
    """

    model: str = ""
    point: str = POINT
    prevalence: float = 0.0
    workers: int = 1
    shard: int = SHARD


@dataclass(frozen=True)
class Found:
    """What was found out about the patches of a source, a row a patch; rows that could not be read are missing.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Rows of the source's table.
    members : DataFrame
        Probability by each member; NaN where a member needs a slide that is unknown.
    probability : ndarray of shape (n,), dtype float64
    label : ndarray of shape (n,), dtype int
    flags : list of str
    alone : ndarray of shape (n,), dtype bool
        Predicted without slide context.
    reasons : dict from int to str
        Why a row could not be read.
    """

    rows: np.ndarray
    members: pd.DataFrame
    probability: np.ndarray
    label: np.ndarray
    flags: list[str]
    alone: np.ndarray
    reasons: dict[int, str]


def predict_folder(
    place: Path,
    folder: Path,
    out: Path,
    *,
    options: Options,
    slides: Path | None = None,
    explain: Sequence[str] = (),
    screen: Screen,
) -> int:
    """Predict every image file of a folder and write the table ``out``.

    Parameters
    ----------
    place : Path
        Bundle.
    folder : Path
        Image files at any depth.
    out : Path
        CSV file with ``id, probability, label, flags``; ``<out>.skipped.csv`` beside it lists files that were skipped.
    options : Options
    slides : Path, optional
        CSV file with the slide of each patch. A slide's patches must be predicted together: its other patches are what
        a patch is compared with.
    explain : sequence of str
        Ids to be explained, in pictures and JSON beside ``out``.
    screen : Screen

    Returns
    -------
    int
        Exit status: 0, or 3 where files were skipped.

    Raises
    ------
    InputError
        The bundle is damaged, or an argument does not fit.
    """
    bundle = open_bundle(place)
    for warning in version_warnings(bundle):
        screen.warn(warning)
    blends = choose_blends(bundle, options.model)
    check_options(blends, options)
    source = UnlabelledImages(folder, size=bundle.index["patch"]["size"], resize=bundle.index["patch"]["resize"])
    _check_out(folder, out, bool(explain))
    known = None if slides is None else slides_of_files(source.table, slides)
    wanted = _explained(source.table, explain)
    screen.say(_introduction(source, blends, known, options))
    work = out.with_name(f".{out.name}.work")
    listing = [stamp(folder / name, name) for name in source.table["file"]]
    open_work(work, {"bundle": bundle.digest, "files": _digest(listing), "shard": options.shard})
    with open_predictor(bundle, chosen_members(blends, known)) as predictor:
        found = predict_source(predictor, blends, source, known, work, options=options, screen=screen)
    skipped = write_tables(source, found, out)
    if wanted:
        _explain(bundle, blends, source, found, wanted, out, screen)
    shutil.rmtree(work)
    return _conclude(found, skipped, out, screen)


def _explain(
    bundle: Bundle,
    blends: tuple[Blend, Blend | None],
    source: UnlabelledImages,
    found: Found,
    rows: list[int],
    out: Path,
    screen: Screen,
) -> None:
    """Explain single patches by every model that needs no slide, whichever of them the blend asks."""
    from pipelines.explaining import explain_patch

    alone = [name for name in bundle.index["models"] if not needs_slides(name)]
    with open_predictor(bundle, alone) as predictor:
        for row in rows:
            explain_patch(predictor, blends, source, found, row, out, screen)


def version_warnings(bundle: Bundle) -> Iterator[str]:
    """How this installation differs from the one that made the bundle."""
    made, here = bundle.index["libraries"], library_versions()
    names = [*COMPARED, *(["keras"] if any(entry["engine"] == "keras" for entry in bundle.index["networks"]) else [])]
    others = [f"{name} {made[name]} (here {here.get(name, 'none')})" for name in names if name in made]
    others = [text for text in others if f"{text.split()[1]} (here {text.split()[1]})" not in text]
    if others:
        yield f"the bundle was made with {', '.join(others)}: probabilities may differ in their last digits"
    if bundle.index["features"]["code"] != code_digest(("features",)):
        yield (
            f"the code of the features differs from that of the bundle (commit {bundle.index['commit']}): "
            "probabilities may differ. Check out that commit for the same ones"
        )


def check_options(blends: tuple[Blend, Blend | None], options: Options) -> None:
    """Find a wrong option before hours of work, not after.

    Raises
    ------
    InputError
        The operating point is unknown, or the prevalence is no share.
    """
    for blend in blends:
        if blend is not None and options.point not in blend.thresholds:
            raise InputError(
                f"the operating point must be one of {', '.join(blend.thresholds)}; got {options.point!r}."
            )
    if options.prevalence and not 0 < options.prevalence < 1:
        raise InputError(f"the prevalence must lie between 0 and 1; got {options.prevalence}.")


def _check_out(folder: Path, out: Path, explain: bool) -> None:
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a CSV file; got a folder. Give OUT=folder/predictions.csv.")
    if explain and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{out}: pictures of explanations must not lie among the patches in {folder}. Choose another OUT."
        )
    out.parent.mkdir(parents=True, exist_ok=True)


def slides_of_files(table: pd.DataFrame, path: Path) -> pd.Series:
    """Slide of each image file by a CSV file with a column of ids and one of slides.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, file``.
    path : Path
        See :func:`data.labels.slide_map`; its ids may be patch ids, files, or file names without folder.

    Returns
    -------
    Series
        Missing where the file does not say.

    Raises
    ------
    InputError
        It cannot be read, or knows none of the patches.
    """
    slides = slide_map(path)
    names = table["file"].map(lambda name: PurePosixPath(name).name)
    # A name that several files share says nothing about either.
    names = names.where(~names.duplicated(keep=False), None)
    found = table["patch_id"].map(slides)
    for others in (table["file"], names):
        found = found.fillna(others.map(slides))
    if found.isna().all():
        first = f"the first of its ids is {slides.index[0]!r}" if len(slides) else "it holds no slide"
        raise InputError(
            f"{path}: expected slides of these patches; it knows none of {len(table)} "
            f"(the first is {table['patch_id'].iloc[0]!r}; {first}). Give another file or leave SLIDES out."
        )
    return found


def _explained(table: pd.DataFrame, ids: Sequence[str]) -> list[int]:
    """Rows of the patches to explain."""
    rows = []
    for name in ids:
        place = np.flatnonzero((table["patch_id"] == name) | (table["file"] == name))
        if not len(place):
            raise InputError(
                f"EXPLAIN must be the id of a patch in the folder; got {name!r} "
                f"(the first is {table['patch_id'].iloc[0]!r})."
            )
        rows.append(int(place[0]))
    return rows


def chosen_members(blends: tuple[Blend, Blend | None], known: pd.Series | None) -> list[str]:
    """Models that are needed: without slides only those of the blend that needs none."""
    with_slides, without = blends
    chosen = [
        *(with_slides.members if known is not None or without is None else ()),
        *(without.members if without else ()),
    ]
    return list(dict.fromkeys(chosen))


def _introduction(
    source: UnlabelledImages, blends: tuple[Blend, Blend | None], known: pd.Series | None, options: Options
) -> str:
    with_slides, without = blends
    parts = [f"{len(source.table)} image files"]
    if source.shared:
        parts.append(f"{source.shared} share a name with another and are called by their path in the folder")
    if with_slides.needs_slides and known is None:
        if without is None:
            raise InputError(
                f"{with_slides.name} compares a patch with the rest of its slide, and no slide is known. "
                "Give SLIDES=file.csv (id,slide), or another MODEL."
            )
        parts.append(
            f"no slides were given (SLIDES): predicted by {_called(without)}, which needs none, "
            f"instead of {_called(with_slides)}"
        )
    else:
        parts.append(f"predicted by {_called(with_slides)}")
    return "; ".join([*parts, f"operating point {options.point}"])


def _called(blend: Blend) -> str:
    return blend.name if blend.members == (blend.name,) else f"{blend.name} of {', '.join(blend.members)}"


def open_work(folder: Path, key: dict[str, Any]) -> None:
    """Keep what an interrupted prediction left only when it was made from the same bundle and files."""
    place = folder / "key.json"
    try:
        same = place.read_text(encoding="utf-8") == _text(key)
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        place.write_text(_text(key), encoding="utf-8")


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def predict_source(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    source: Source,
    slides: pd.Series | None,
    work: Path,
    *,
    options: Options,
    screen: Screen,
) -> Found:
    """Predict all patches of a source.

    Parameters
    ----------
    predictor : Predictor
        Of all members that the blends need here.
    blends : pair of Blend
        From :func:`models.predictor.choose_blends`.
    source : Source
        Its table needs no ``label``.
    slides : Series of str, optional
        Slide of each row, missing where unknown.
    work : Path
        Existing folder for finished shards; the caller sees to it that they belong to this prediction.
    options : Options
    screen : Screen
    """
    compared = slides is not None and any(map(needs_slides, predictor.members))
    shards = _Shards(predictor, source, work, keep_raw=compared)
    total = len(source.table)
    starts = range(0, total, options.shard)
    _compile(predictor, screen)
    with screen.progress("predicting", total) as progress:
        for count in _run(shards, [(start, min(start + options.shard, total)) for start in starts], options.workers):
            progress(count)
    members, flags, reasons = shards.join(starts)
    rows = np.array([row for row in range(total) if row not in reasons], dtype=int)
    alone = np.ones(total, bool)
    if compared and slides is not None:
        alone = _compare(shards, predictor, slides, rows, members, options.shard, screen)
    if blends[0].needs_slides and blends[1] is None and alone[rows].any():
        raise InputError(
            f"{blends[0].name} compares a patch with the rest of its slide, and {int(alone[rows].sum())} patches have "
            "no slide, or one of too few patches. Give their slides (SLIDES), or another MODEL."
        )
    probability, label = _blend(predictor, blends, members, alone, options)
    names = [" ".join(name for name, on in zip(FLAGS, row, strict=True) if on) for row in flags[rows]]
    table = pd.DataFrame(members[rows], columns=list(predictor.members))
    return Found(rows, table, probability[rows], label[rows], names, alone[rows], reasons)


def _compile(predictor: Predictor, screen: Screen) -> None:
    """Compile kernels before a bar stands still over it."""
    if predictor.families:
        from features.table import compile_kernels

        with screen.progress("compiling kernels", len(predictor.families), "families") as progress:
            compile_kernels(predictor.families, progress=progress)


def _run(shards: _Shards, tasks: list[tuple[int, int]], workers: int) -> Iterator[int]:
    """Make every shard and yield the number of its patches."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if min(workers, len(tasks)) <= 1:
            yield from (shards.make(*task) for task in tasks)
            return
        from joblib import Parallel, delayed, parallel_config

        # Threads: decoding, kernels, ONNX Runtime and XGBoost let go of the interpreter's lock.
        with parallel_config("threading"):
            pool = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator_unordered")
            yield from pool(delayed(shards.make)(*task) for task in tasks)


class _Shards:
    """Finished parts of a prediction, a file each."""

    def __init__(self, predictor: Predictor, source: Source, folder: Path, *, keep_raw: bool) -> None:
        self.predictor, self.source, self.folder, self.keep_raw = predictor, source, folder, keep_raw

    def path(self, start: int) -> Path:
        """Where the shard from this row on lies; its name says which members it holds."""
        kind = hashlib.sha256(" ".join(self.predictor.members).encode()).hexdigest()[:8]
        return self.folder / f"{kind}{'-raw' if self.keep_raw else ''}-{start:08d}.npz"

    def make(self, start: int, stop: int) -> int:
        """Predict rows start to stop, unless an earlier call did."""
        if self.load(start) is not None:
            return stop - start
        pixels, reasons = self.source.read(start, stop)
        good = np.array([row for row in range(stop - start) if row not in reasons], dtype=int)
        values = self.predictor(np.ascontiguousarray(pixels[good]))
        members = np.full((stop - start, values.members.shape[1]), np.nan)
        flags = np.zeros((stop - start, len(FLAGS)), bool)
        raw = np.zeros((stop - start, values.raw.shape[1] if self.keep_raw else 0), np.float32)
        members[good], flags[good] = values.members, values.flags
        if self.keep_raw:
            raw[good] = values.raw
        arrays = {
            "members": members,
            "flags": flags,
            "raw": raw,
            "lost": np.array(sorted(reasons), dtype=np.int64),
            "reasons": np.array([reasons[row] for row in sorted(reasons)], dtype=np.str_),
        }
        write_whole(self.path(start), lambda file: np.savez(file, allow_pickle=False, **arrays))
        return stop - start

    def load(self, start: int) -> dict[str, np.ndarray] | None:
        """Content of a finished shard but for its features; None where it is missing or damaged."""
        try:
            # Opened here: of a damaged file numpy would leave its own handle open.
            with self.path(start).open("rb") as content, np.load(content, allow_pickle=False) as file:
                return {name: file[name] for name in ("members", "flags", "lost", "reasons")}
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def raw(self, start: int) -> np.ndarray:
        """Handcrafted features of a finished shard."""
        with np.load(self.path(start), allow_pickle=False) as file:
            values: np.ndarray = file["raw"]
        return values

    def join(self, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Members, flags and reasons of all rows."""
        members, flags = [], []
        reasons: dict[int, str] = {}
        for start in starts:
            part = self.load(start)
            if part is None:
                raise OSError(5, "a finished part is gone or damaged", str(self.path(start)))
            members.append(part["members"])
            flags.append(part["flags"])
            pairs = zip(part["lost"].tolist(), part["reasons"].tolist(), strict=True)
            reasons |= {start + row: reason for row, reason in pairs}
        return np.concatenate(members), np.concatenate(flags), reasons


def _compare(
    shards: _Shards,
    predictor: Predictor,
    slides: pd.Series,
    rows: np.ndarray,
    members: np.ndarray,
    shard: int,
    screen: Screen,
) -> np.ndarray:
    """Fill in the members that need slides, a slide at a time; return which rows are predicted without.

    What is in memory at a time are one slide's features, and one shard's.
    """
    alone = np.ones(len(slides), bool)
    small, few = 0, 0
    for slide_rows in slides.iloc[rows].groupby(slides.iloc[rows], sort=False).indices.values():
        inside = rows[np.sort(slide_rows)]
        if len(inside) <= FEWEST:
            few += len(inside)
            continue
        small += len(inside) if len(inside) < ENOUGH else 0
        raw = np.concatenate(
            [
                shards.raw(start)[inside[inside // shard == start // shard] - start]
                for start in np.unique(inside // shard) * shard
            ]
        )
        for name, probability in predictor.with_slide(raw).items():
            members[inside, predictor.members.index(name)] = probability
        alone[inside] = False
    if few:
        screen.warn(f"{few} patches stand in slides of {FEWEST} patches or fewer, which say nothing about a slide")
    if small:
        screen.warn(f"{small} patches stand in slides of fewer than {ENOUGH} patches: slide context is weak there")
    if alone[rows].any() and not alone[rows].all():
        screen.say(f"  {int(alone[rows].sum())} patches are predicted without slide context")
    return alone


def _blend(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    members: np.ndarray,
    alone: np.ndarray,
    options: Options,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and label of every row; rows that could not be read hold NaN and 0."""
    probability, label = np.full(len(members), np.nan), np.zeros(len(members), int)
    prevalence = float(predictor.bundle.index["prevalence"])
    for blend, chosen in ((blends[0], ~alone), (blends[1] or blends[0], alone)):
        places = [predictor.members.index(name) for name in blend.members if name in predictor.members]
        rows = chosen & np.isfinite(members[:, places]).all(axis=1)
        if len(places) < len(blend.members) or not rows.any():
            continue
        found = blend.combine(np.ascontiguousarray(members[np.ix_(rows, places)]))
        # Sensitivity and specificity do not depend on prevalence, so the operating point stays where it was chosen.
        label[rows] = found >= blend.thresholds[options.point]
        if options.prevalence:
            from models.calibration import shift_prevalence

            found = shift_prevalence(found, prevalence, options.prevalence)
        probability[rows] = found
    return probability, label


def write_tables(source: UnlabelledImages, found: Found, out: Path) -> int:
    """Write predictions and, where files were skipped, the list of them; return how many were."""
    table = pd.DataFrame(
        {
            "id": [escape(name) for name in source.table["patch_id"].iloc[found.rows]],
            "probability": found.probability,
            "label": found.label,
            "flags": found.flags,
        }
    )
    files = source.table["file"]
    lost = {files.iloc[row]: reason for row, reason in found.reasons.items()} | source.skipped
    beside = out.with_name(f"{out.name}.skipped.csv")
    beside.unlink(missing_ok=True)
    if lost:
        listed = pd.DataFrame({"file": [escape(name) for name in lost], "reason": list(lost.values())})
        write_whole(beside, lambda file: listed.to_csv(file, index=False))
    write_whole(out, lambda file: table.to_csv(file, index=False))
    return len(lost)


def escape(name: str) -> str:
    """Keep a spreadsheet from taking a name for a formula: an apostrophe in front makes it text."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file that appears under its name only when whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _conclude(found: Found, skipped: int, out: Path, screen: Screen) -> int:
    flagged = sum(map(bool, found.flags))
    screen.say(
        f"{out}: {len(found.rows)} patches, {int(found.label.sum())} labelled positive, {flagged} flagged"
        + (f" ({_counts(found.flags)})" if flagged else "")
    )
    if not skipped:
        return 0
    screen.warn(f"{skipped} files were skipped; {out}.skipped.csv lists each with its reason")
    for line in pd.read_csv(f"{out}.skipped.csv", dtype=str).head(5).itertuples(index=False):
        screen.say(f"  {line.file}: {line.reason}")
    return SKIPPED_STATUS


def _counts(flags: list[str]) -> str:
    counts = pd.Series(" ".join(flags).split()).value_counts()
    return ", ".join(f"{name} {count}" for name, count in counts.items())
