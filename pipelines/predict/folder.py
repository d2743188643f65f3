"""New patches: a folder of image files to a table of probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import look_alike_words
from histoblend.data.sources.file_names import FileNames
from histoblend.data.sources.folder import UnlabelledImages
from histoblend.data.sources.images import size_remedy
from histoblend.data.sources.labels import given_slides
from histoblend.data.sources.own_results import is_result
from histoblend.data.storage.arrays import stamp
from histoblend.data.storage.atomic import write_whole
from histoblend.data.storage.parts import Parts
from histoblend.data.storage.spreadsheet import read_written, write_csv
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.names import needs_slides
from histoblend.models.predictor import Blend, choose_blends, open_predictor
from histoblend.pipelines.predict.shards import Found, Options, predict_source
from histoblend.pipelines.runtime.provenance import code_digest, library_versions
from histoblend.pipelines.runtime.screen import Screen

#: Exit status where files were skipped.
SKIPPED_STATUS = 3

#: Results of earlier calls among the images that are named in the terminal.
MOST_NAMED = 5

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
    blends = choose_blends(bundle, options.model)
    for warning in version_warnings(bundle):
        screen.warn(warning)
    check_options(blends, options)
    source = UnlabelledImages(folder, size=bundle.index["patch"]["size"], resize=bundle.index["patch"]["resize"])
    check_out(folder, out, explain=bool(explain))
    known = None if slides is None else given_slides(source.table["file"], slides)
    if known is not None and (alike := look_alike_words(known.dropna(), "slide")):
        screen.warn(f"{slides}: {alike}. Patches are compared within each name: give a slide one name")
    wanted = _explained(source.table, explain)
    _say_results(source, folder, out, screen)
    screen.say(_introduction(source, blends, known, options))
    listing = [stamp(folder / name, name) for name in source.table["file"]]
    code = code_digest(("data", "features", "models", "pipelines/predict/shards.py"))
    key = {"bundle": bundle.digest, "code": code, "files": _digest(listing), "shard": options.shard}
    parts = Parts(out.with_name(f".{out.name}.work"), key)
    with open_predictor(bundle, chosen_members(blends, known)) as predictor:
        found = predict_source(predictor, blends, source, known, parts, options=options, screen=screen)
    skipped = write_tables(source, found, out)
    if wanted:
        _explain(bundle, blends, source, found, wanted, out, screen)
    parts.forget()
    if advice := _other_size(found, bundle):
        screen.warn(advice)
    return _conclude(found, skipped, out, screen)


def _say_results(source: UnlabelledImages, folder: Path, out: Path, screen: Screen) -> None:
    """Say which earlier results are among the images, and so are no patches; that OUT is there needs no words."""
    own = {out.resolve(), _beside(out).resolve()}
    found = [(folder / name, what) for name, what in source.results.items() if (folder / name).resolve() not in own]
    for path, what in found[:MOST_NAMED]:
        screen.say(f"  left out: {path}, {what}")
    if len(found) > MOST_NAMED:
        screen.say(f"  left out: {len(found) - MOST_NAMED} more results of earlier calls")


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
    from histoblend.pipelines.predict.explanation import explain_patch

    alone = [name for name in bundle.index["models"] if not needs_slides(name)]
    with open_predictor(bundle, alone) as predictor:
        for row in rows:
            explain_patch(predictor, blends, source, found, row, out, screen)


def version_warnings(bundle: Bundle) -> Iterator[str]:
    """How this installation differs from the one that made the bundle."""
    made, here = bundle.index["libraries"], library_versions()
    names = [*COMPARED, *(["keras"] if any(entry["engine"] == "keras" for entry in bundle.index["networks"]) else [])]
    differ = [name for name in names if name in made and made[name] != here.get(name)]
    others = [f"{name} {made[name]} (here {here.get(name, 'none')})" for name in differ]
    if others:
        yield f"the bundle was made with {', '.join(others)}: probabilities may differ in their last digits"
    if bundle.index["features"]["code"] != code_digest(("features",)):
        yield (
            f"the code of the features differs from that of the bundle (commit {bundle.index.get('commit')}): "
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


def check_out(folder: Path, out: Path, *, explain: bool) -> None:
    """See that the table ``out`` can be written, and that nothing of the user is lost by it.

    Raises
    ------
    InputError
        It is a folder or a file that :func:`predict_folder` did not write, or pictures would be among patches.
    """
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a CSV file; got a folder. Give OUT=folder/predictions.csv.")
    if explain and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{out}: pictures of explanations must not lie among the patches in {folder}. Choose another OUT."
        )
    for path in (out, _beside(out)):
        # An image or a table of labels named by mistake must not be lost, nor a link or device such as /dev/stdout.
        odd = path.is_symlink() or (path.exists() and not path.is_file())
        if odd or (path.is_file() and path.stat().st_size and not is_result(str(path))):
            raise InputError(
                f"{path}: expected a new file, or a table that predict wrote, which is replaced; got another file, a "
                "link or a device. Choose another OUT, or remove it."
            )
    out.parent.mkdir(parents=True, exist_ok=True)


def _explained(table: pd.DataFrame, ids: Sequence[str]) -> list[int]:
    """Rows of the patches to explain."""
    if not ids:
        return []
    files, rows = FileNames(table["file"].tolist(), "EXPLAIN"), []
    for name in ids:
        file = files.find(name)
        if file is None:
            raise InputError(
                f"EXPLAIN must be the id of a patch in the folder; got {name!r} "
                f"(the first is {table['patch_id'].iloc[0]!r})."
            )
        rows.append(int(np.flatnonzero(table["file"] == file)[0]))
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


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def write_tables(source: UnlabelledImages, found: Found, out: Path) -> int:
    """Write predictions and, where files were skipped, the list of them; return how many were."""
    table = pd.DataFrame(
        {
            "id": source.table["patch_id"].iloc[found.rows].to_numpy(),
            "probability": found.probability,
            "label": found.label,
            "flags": found.flags,
        }
    )
    files = source.table["file"]
    lost = {files.iloc[row]: reason for row, reason in found.reasons.items()} | source.skipped
    beside = _beside(out)
    beside.unlink(missing_ok=True)
    if lost:
        listed = pd.DataFrame({"file": list(lost), "reason": list(lost.values())})
        write_whole(beside, lambda file: write_csv(listed, file))
    write_whole(out, lambda file: write_csv(table, file))
    return len(lost)


def _other_size(found: Found, bundle: Bundle) -> str:
    """What to do where most files that were skipped have another size; empty elsewhere."""
    if not size_remedy(found.reasons.values(), resizes=True):
        return ""
    size = bundle.index["patch"]["size"]
    return (
        f"the bundle takes patches of {size} × {size} pixels, at the resolution that it was trained at: cut or scale "
        "the images to that, or train with --set data.resize=resize (CONFIG=folder), whose bundle scales images itself"
    )


def _beside(out: Path) -> Path:
    """The list of files that were skipped."""
    return out.with_name(f"{out.name}.skipped.csv")


def _conclude(found: Found, skipped: int, out: Path, screen: Screen) -> int:
    flagged = sum(map(bool, found.flags))
    screen.say(
        f"{out}: {len(found.rows)} patches, {int(found.label.sum())} labelled positive, {flagged} flagged"
        + (f" ({_counts(found.flags)})" if flagged else "")
    )
    if not skipped:
        return 0
    screen.warn(f"{skipped} files were skipped; {out}.skipped.csv lists each with its reason")
    listed = read_written(_beside(out), ("file", "reason"))
    for line in listed.head(5).itertuples(index=False):
        screen.say(f"  {line.file}: {line.reason}")
    return SKIPPED_STATUS


def _counts(flags: list[str]) -> str:
    counts = pd.Series(" ".join(flags).split()).value_counts()
    return ", ".join(f"{name} {count}" for name, count in counts.items())
