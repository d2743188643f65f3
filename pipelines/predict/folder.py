"""Predict a folder of image files and write a table of probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import describe_look_alikes
from histoblend.data.sources.file_names import FileNames
from histoblend.data.sources.folder import UnlabelledImages
from histoblend.data.sources.images import size_remedy
from histoblend.data.sources.labels import given_slides
from histoblend.data.sources.own_results import is_result
from histoblend.data.storage.arrays import stamp
from histoblend.data.storage.atomic import write_atomically
from histoblend.data.storage.parts import Parts
from histoblend.data.storage.spreadsheet import read_written, write_csv
from histoblend.models.blends import Blend, choose_blends
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.names import needs_slides
from histoblend.models.predictor import open_predictor
from histoblend.pipelines.predict.shards import Options, PredictedPatches, predict_source
from histoblend.pipelines.runtime.provenance import code_digest, library_versions
from histoblend.pipelines.runtime.screen import Screen

#: Exit status when files were skipped.
SKIPPED_STATUS = 3

#: Largest number of results of earlier calls that are listed in the terminal.
MAX_NAMED = 5

#: Libraries whose version may change the last digits of a prediction.
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
    bundle_folder: Path,
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
    bundle_folder : Path
    folder : Path
        Image files at any depth.
    out : Path
        CSV file with ``id, probability, label, flags``. ``<out>.skipped.csv`` lists the skipped files.
    options : Options
    slides : Path, optional
        CSV file with the slide of each patch. All patches of a slide must be predicted together, because each is
        compared with the others.
    explain : sequence of str
        Ids of patches to explain, in pictures and JSON files next to ``out``.
    screen : Screen

    Returns
    -------
    int
        Exit status: 0, or 3 if files were skipped.

    Raises
    ------
    InputError
        The bundle is damaged, or an argument is not valid.
    """
    bundle = open_bundle(bundle_folder)
    blends = choose_blends(bundle, options.model)
    for warning in version_warnings(bundle):
        screen.warn(warning)
    check_options(blends, options)
    source = UnlabelledImages(folder, size=bundle.index["patch"]["size"], resize=bundle.index["patch"]["resize"])
    check_out(folder, out, explain=bool(explain))
    patch_slides = None if slides is None else given_slides(source.table["file"], slides)
    if patch_slides is not None and (alike := describe_look_alikes(patch_slides.dropna(), "slide")):
        screen.warn(f"{slides}: {alike}. Patches are compared within each name, so use one name per slide")
    rows_to_explain = _rows_to_explain(source.table, explain)
    _list_results(source, folder, out, screen)
    screen.say(_introduction(source, blends, patch_slides, options))
    if options.prevalence:
        screen.say(
            f"  probabilities are rescaled from {_percent(bundle.index['prevalence'])} positives, as in training, to "
            f"{_percent(options.prevalence)} (PREVALENCE); labels do not change"
        )
    stamps = [stamp(folder / name, name) for name in source.table["file"]]
    code = code_digest(("data", "features", "models", "pipelines/predict/shards.py"))
    key = {"bundle": bundle.digest, "code": code, "files": _digest(stamps), "shard": options.shard}
    with open_predictor(bundle, chosen_members(blends, patch_slides)) as predictor:
        parts = Parts(out.with_name(f".{out.name}.work"), key)
        predictions = predict_source(predictor, blends, source, patch_slides, parts, options=options, screen=screen)
    skipped = write_tables(source, predictions, out)
    if rows_to_explain:
        _explain(bundle, blends, source, predictions, rows_to_explain, out, screen)
    parts.forget()
    if advice := _size_advice(predictions, bundle):
        screen.warn(advice)
    return _conclude(predictions, skipped, out, screen)


def _list_results(source: UnlabelledImages, folder: Path, out: Path, screen: Screen) -> None:
    """List earlier results among the images, which are not predicted. ``out`` itself is not listed."""
    own = {out.resolve(), _skipped_path(out).resolve()}
    results = [(folder / name, what) for name, what in source.results.items() if (folder / name).resolve() not in own]
    for path, what in results[:MAX_NAMED]:
        screen.say(f"  left out: {path}, {what}")
    if len(results) > MAX_NAMED:
        screen.say(f"  left out: {len(results) - MAX_NAMED} more results of earlier calls")


def _explain(
    bundle: Bundle,
    blends: tuple[Blend, Blend | None],
    source: UnlabelledImages,
    predictions: PredictedPatches,
    rows: list[int],
    out: Path,
    screen: Screen,
) -> None:
    """Explain single patches with every model that needs no slide, including those outside the blend."""
    from histoblend.pipelines.predict.explanation import explain_patch

    members = [name for name in bundle.index["models"] if not needs_slides(name)]
    with open_predictor(bundle, members) as predictor:
        for row in rows:
            explain_patch(predictor, blends, source, predictions, row, out, screen)


def version_warnings(bundle: Bundle) -> Iterator[str]:
    """Warn of differences between this installation and the one that made the bundle."""
    made, here = bundle.index["libraries"], library_versions()
    names = [*COMPARED, *(["keras"] if any(entry["engine"] == "keras" for entry in bundle.index["networks"]) else [])]
    changed = [name for name in names if name in made and made[name] != here.get(name)]
    differences = [f"{name} {made[name]} (here {here.get(name, 'none')})" for name in changed]
    if differences:
        yield f"the bundle was made with {', '.join(differences)}: the last digits of probabilities may differ"
    if bundle.index["features"]["code"] != code_digest(("features",)):
        yield (
            f"the feature code differs from the bundle's (commit {bundle.index.get('commit')}), so probabilities may "
            "differ. Check out that commit to reproduce them"
        )


def check_options(blends: tuple[Blend, Blend | None], options: Options) -> None:
    """Check the options before the work starts.

    Raises
    ------
    InputError
        The operating point is unknown, or the prevalence is not between 0 and 1.
    """
    for blend in blends:
        if blend is not None and options.point not in blend.thresholds:
            raise InputError(
                f"the operating point must be one of {', '.join(blend.thresholds)}; got {options.point!r}."
            )
    if options.prevalence and not 0 < options.prevalence < 1:
        raise InputError(f"the prevalence must be between 0 and 1; got {options.prevalence}.")


def check_out(folder: Path, out: Path, *, explain: bool) -> None:
    """Check that the table ``out`` can be written without overwriting a file of the user.

    Raises
    ------
    InputError
        It is a folder or a file that :func:`predict_folder` did not write, or explanations would be among the patches.
    """
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a CSV file; got a folder. Give OUT=folder/predictions.csv.")
    if explain and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{out}: explanations must not be written into the folder of patches, {folder}. Choose another OUT."
        )
    for path in (out, _skipped_path(out)):
        # Never overwrite an image or label table given by mistake, nor a link or a device such as /dev/stdout.
        special = path.is_symlink() or (path.exists() and not path.is_file())
        if special or (path.is_file() and path.stat().st_size and not is_result(str(path))):
            raise InputError(
                f"{path}: expected a new file, or an earlier table of predict to replace; got another file, a link "
                "or a device. Choose another OUT, or remove it."
            )
    out.parent.mkdir(parents=True, exist_ok=True)


def _rows_to_explain(table: pd.DataFrame, ids: Sequence[str]) -> list[int]:
    """Row numbers of the patches to explain."""
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


def chosen_members(blends: tuple[Blend, Blend | None], patch_slides: pd.Series | None) -> list[str]:
    """Members that the prediction needs. Without slides, these are only those of the blend that needs no slides."""
    with_slides, without = blends
    chosen = [
        *(with_slides.members if patch_slides is not None or without is None else ()),
        *(without.members if without else ()),
    ]
    return list(dict.fromkeys(chosen))


def _introduction(
    source: UnlabelledImages, blends: tuple[Blend, Blend | None], patch_slides: pd.Series | None, options: Options
) -> str:
    parts = [f"{len(source.table)} image files"]
    if source.shared:
        parts.append(f"{source.shared} share a name with another and are identified by their path in the folder")
    instead = "" if patch_slides is not None else replaced_without_slides(blends, "SLIDES=file.csv (id,slide)")
    parts.append(instead or f"predicted by {_describe(blends[0])}")
    used = blends[1] if instead and blends[1] is not None else blends[0]
    parts += [used.why] if used.why else []
    return "; ".join([*parts, f"operating point {options.point}"])


def replaced_without_slides(blends: tuple[Blend, Blend | None], option: str) -> str:
    """Say which model predicts patches of unknown slides instead of the chosen one; empty if the chosen one does.

    Parameters
    ----------
    blends : pair of Blend
    option : str
        How slides are given, for the message.

    Raises
    ------
    InputError
        The chosen model needs slides and has no substitute.
    """
    with_slides, without = blends
    if not with_slides.needs_slides:
        return ""
    if without is None:
        raise InputError(
            f"{with_slides.name} compares a patch with the rest of its slide, but no slide is known. "
            f"Give {option}, or another MODEL."
        )
    return (
        f"no slides were given ({option.partition('=')[0]}), so {_describe(without)}, which needs none, predicts "
        f"instead of {_describe(with_slides)}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _describe(blend: Blend) -> str:
    return blend.name if blend.members == (blend.name,) else f"{blend.name} of {', '.join(blend.members)}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def write_tables(source: UnlabelledImages, predictions: PredictedPatches, out: Path) -> int:
    """Write the predictions and, if files were skipped, the list of them. Return the number of skipped files."""
    table = pd.DataFrame(
        {
            "id": source.table["patch_id"].iloc[predictions.rows].to_numpy(),
            "probability": predictions.probability,
            "label": predictions.label,
            "flags": predictions.flags,
        }
    )
    files = source.table["file"]
    skipped = {files.iloc[row]: reason for row, reason in predictions.reasons.items()} | source.skipped
    skipped_path = _skipped_path(out)
    skipped_path.unlink(missing_ok=True)
    if skipped:
        reasons = pd.DataFrame({"file": list(skipped), "reason": list(skipped.values())})
        write_atomically(skipped_path, lambda file: write_csv(reasons, file))
    write_atomically(out, lambda file: write_csv(table, file))
    return len(skipped)


def _size_advice(predictions: PredictedPatches, bundle: Bundle) -> str:
    """Advice for the case that most skipped files have another size; otherwise empty."""
    if not size_remedy(predictions.reasons.values(), resizes=True):
        return ""
    size = bundle.index["patch"]["size"]
    return (
        f"the bundle takes patches of {size} × {size} pixels at the resolution of its training patches. Crop or resize "
        "the images, or train with --set data.resize=resize (CONFIG=folder): that bundle resizes images itself"
    )


def _skipped_path(out: Path) -> Path:
    """Path of the list of skipped files."""
    return out.with_name(f"{out.name}.skipped.csv")


def _conclude(predictions: PredictedPatches, skipped: int, out: Path, screen: Screen) -> int:
    flagged = sum(map(bool, predictions.flags))
    screen.say(
        f"{out}: {len(predictions.rows)} patches, {int(predictions.label.sum())} labelled positive, {flagged} flagged"
        + (f" ({_flag_counts(predictions.flags)})" if flagged else "")
    )
    if not skipped:
        return 0
    screen.warn(f"{skipped} files were skipped; {out}.skipped.csv lists each with its reason")
    reasons = read_written(_skipped_path(out), ("file", "reason"))
    for line in reasons.head(5).itertuples(index=False):
        screen.say(f"  {line.file}: {line.reason}")
    return SKIPPED_STATUS


def _flag_counts(flags: list[str]) -> str:
    counts = pd.Series(" ".join(flags).split()).value_counts()
    return ", ".join(f"{name} {count}" for name, count in counts.items())
