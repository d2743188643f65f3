"""Step 1: decode all patches, audit them, and split them by group."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.audit.flags import choose_examples, decide, examine, reason, summarise
from histoblend.data.audit.inferred_slides import TINTS, clusters_for, infer_slides
from histoblend.data.audit.measures import Measures, measure
from histoblend.data.errors import InputError
from histoblend.data.names import describe_look_alikes
from histoblend.data.patches import (
    PIXELS,
    Source,
    drop_rows,
    remedy,
    remove_chunks,
    write_pixels,
    write_table,
    write_unlabelled,
)
from histoblend.data.scored_parts import check_scored
from histoblend.data.sources.centres import check_centres, hold_out_centre, mapped_centres
from histoblend.data.sources.own_results import is_result
from histoblend.data.sources.registry import source_kind
from histoblend.data.splits import UNMAPPED, assign_splits, base_groups, check_enough, is_known, unite
from histoblend.data.storage.arrays import StoredRows, find_name, names_in
from histoblend.data.storage.spreadsheet import write_csv
from histoblend.pipelines.config import Config
from histoblend.pipelines.run import Listed, Run
from histoblend.pipelines.run_files import (
    AUDIT,
    EXAMPLES,
    PICTURES,
    SET_ASIDE,
    SLIDES,
    SUBMISSION,
    SUMMARY,
    UNLABELLED,
)
from histoblend.pipelines.runtime.artefacts import KEY, StepResult, file_digest
from histoblend.pipelines.runtime.resources import check_disk
from histoblend.pipelines.runtime.screen import Screen


def settings(config: Config) -> dict[str, Any]:
    """The settings that the prepared patches depend on."""
    options = {**_options(config), "source": config.data.source, "strict": config.data.strict}
    options.pop("seed", None)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    options["centre_map"] = config.data.centre_map
    return {"data": options, "split": config.split.model_dump(), "audit": config.audit.model_dump()}


def inputs(run: Run) -> dict[str, str]:
    """Digests of the data folder's content and of the table of centres. Empty if the run reads neither."""
    options, centres = _options(run.config), _centre_map(run.config)
    content = source_kind(run.config.data.source).content
    digests = folder_digests(options["path"], content(**options)) if "path" in options else {}
    return digests | ({"centres": file_digest(centres)} if centres is not None and centres.is_file() else {})


def build(run: Run, folder: Path) -> StepResult:
    """Write ``pixels.npy``, ``patches.parquet``, ``set_aside.csv`` and the results of the audit into ``folder``."""
    config, source = run.config, open_source(run.config)
    _check_groups(config, source.table)
    # Labels and slides are known before decoding, which may take hours, so an impossible split is refused here.
    _check_enough(config, source.table)
    _check_room(source, folder)
    unlabelled: Source | None = getattr(source, "unlabelled", None)
    run.listed = Listed(len(source.table), 0 if unlabelled is None else len(unlabelled.table))
    try:
        return _write(config, source, folder, run.workers, run.screen)
    except InputError:
        # The same files and settings will be refused again, so nothing that was decoded can be used.
        for path in set(folder.iterdir()) - {folder / KEY}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _write(config: Config, source: Source, folder: Path, workers: int, screen: Screen) -> StepResult:
    """Decode, audit and split the patches of a source whose labels and slides were checked."""
    with screen.progress("decoding", len(source.table)) as progress:
        table, unreadable, measured = write_pixels(
            source, folder, workers=workers, strict=config.data.strict, measure=_measure_arrays, progress=progress
        )
    if len(unreadable) and (advice := remedy(source, unreadable["reason"])):
        screen.warn(f"{len(unreadable)} patches cannot be read (first: {unreadable['reason'].iloc[0]}). {advice}")
    measures = Measures.join([Measures(**arrays) for arrays in measured])
    measured.clear()
    table, audit = audit_patches(config, table, measures)
    del measures
    dropped = audit["dropped_by"] != ""
    write_audit(audit, source.table[source.table["patch_id"].isin(unreadable["patch_id"])], config, folder)
    if dropped.all():
        main_reason = audit["dropped_by"].map(reason).value_counts().index[0]
        raise InputError(
            f"expected patches to train on; the audit drops all {len(audit)} (most often: {main_reason}). "
            "Fix the data, or keep these patches: `settings` lists the values of audit.*."
        )
    if dropped.any():
        drop_rows(folder, ~dropped.to_numpy())
        table = table[~dropped].reset_index(drop=True)
    remove_chunks(folder)
    skipped = getattr(source, "skipped", {})
    skipped_rows = pd.DataFrame({"patch_id": list(skipped), "reason": list(skipped.values())})
    dropped_rows = audit.loc[dropped, ["patch_id"]].assign(reason=audit.loc[dropped, "dropped_by"].map(reason))
    set_aside = pd.concat([unreadable, dropped_rows, skipped_rows], ignore_index=True)
    write_csv(set_aside, folder / SET_ASIDE)
    table = assign_splits(table, test_share=config.split.test_share, folds=config.split.folds, seed=config.seed)
    check_scored(table)
    write_table(table, folder)
    notes = {"set_aside": len(set_aside), "balance": balance(table).to_dict("records")}
    return StepResult(len(table), notes | _source_notes(config, source, folder, workers, screen))


def _measure_arrays(patches: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of patches for the audit, as arrays that can be stored in a file."""
    return vars(measure(patches))


def _check_room(source: Source, folder: Path) -> None:
    """Check that all decoded patches fit on the disk; files of an interrupted run will be overwritten."""
    sources = [(PIXELS, source), (f"{UNLABELLED}/{PIXELS}", getattr(source, "unlabelled", None))]
    files = [(folder / name, len(part.table) * 3 * part.size**2) for name, part in sources if part is not None]
    needed = sum(size - (path.stat().st_size if path.is_file() else 0) for path, size in files)
    check_disk(folder, needed, f"{sum(len(part.table) for _, part in sources if part is not None)} decoded patches")


def _source_notes(config: Config, source: Source, folder: Path, workers: int, screen: Screen) -> dict[str, Any]:
    """Notes on how the source read its files. Also write its unlabelled patches, if any, into ``unlabelled/``."""
    notes: dict[str, Any] = {"source": getattr(source, "notes", {})}
    unlabelled: Source | None = getattr(source, "unlabelled", None)
    if unlabelled is None:
        return notes
    with screen.progress("decoding unlabelled", len(unlabelled.table)) as progress:
        target, strict = folder / UNLABELLED, config.data.strict
        set_aside = write_unlabelled(unlabelled, target, workers=workers, strict=strict, progress=progress)
    write_csv(set_aside, target / SET_ASIDE)
    if len(set_aside):
        first = ", ".join(repr(name) for name in set_aside["patch_id"][:3])
        screen.warn(
            f"{len(set_aside)} unlabelled patches cannot be predicted (first: {first}); 1-patches/{UNLABELLED}/"
            f"{SET_ASIDE} gives the reasons. In {SUBMISSION} they get the training patches' share of positives"
        )
    if unlisted := getattr(unlabelled, "unlisted", []):
        screen.warn(
            f"{len(unlisted)} unlabelled patches are not in the data set's list of ids (first: {unlisted[0]!r}). "
            f"{SUBMISSION} will contain them too, and Kaggle refuses a submission with other ids than its own"
        )
    return notes | {"unlabelled": len(unlabelled.table), "unlabelled_set_aside": len(set_aside)}


def audit_patches(config: Config, table: pd.DataFrame, measures: Measures) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flag decoded patches, and decide which are dropped and which stay in one group.

    Returns
    -------
    table : DataFrame
        The table with ``group``, and with inferred slides if ``split.groups`` is "infer".
    audit : DataFrame
        Flags from :func:`data.audit.flags.examine`, and ``dropped_by``. Rows are as in ``table``.
    """
    if is_known(table["slide"]).any():
        table = table.assign(slide=table["slide"].fillna(UNMAPPED))
    audit = examine(table, measures)
    if config.split.groups == "infer":
        clusters = clusters_for(config.split.test_share, config.split.folds)
        audit["slide"] = infer_slides(audit, audit["set"].to_numpy(), clusters=clusters, seed=config.seed)
        table = table.assign(slide=audit["slide"])
    groups = base_groups(table, by_patch=config.split.groups == "patch")
    decision = decide(audit, groups, config.audit.model_dump())
    audit["dropped_by"] = decision.dropped_by
    return table.assign(group=unite(groups, decision.first, decision.second)), audit


def write_audit(audit: pd.DataFrame, unreadable: pd.DataFrame, config: Config, folder: Path) -> None:
    """Write the audit table, its summary, a summary of each slide, and a few pictures of flagged patches.

    Parameters
    ----------
    audit : DataFrame
        Flags of the decoded patches, and ``dropped_by``. Rows are as in ``pixels.npy``.
    unreadable : DataFrame
        ``patch_id, label, slide`` of patches that could not be read.
    config : Config
    folder : Path
    """
    examples = choose_examples(audit)
    rows = examples["row"].to_numpy(dtype=int)
    np.save(folder / PICTURES, StoredRows(folder / PIXELS)[rows])
    example_rows = audit.loc[rows, ["patch_id", "slide", "label", "similarity", "dropped_by"]].reset_index(drop=True)
    write_csv(pd.concat([examples["flag"], example_rows], axis=1), folder / EXAMPLES)
    write_csv(slide_counts(audit), folder / SLIDES)
    unreadable = unreadable[["patch_id", "label", "slide"]].assign(undecodable=True, dropped_by="undecodable")
    flags = audit.select_dtypes(bool).columns
    every = pd.concat([audit, unreadable], ignore_index=True) if len(unreadable) else audit
    every[flags] = every[flags].fillna(False).astype(bool)
    # Patch ids replace row numbers, which change when patches are dropped.
    ids = audit["patch_id"].to_numpy()
    for column in ("exact_of", "set"):
        names = ids[audit[column]]
        every[column] = np.append(np.where(names == ids, "", names), [""] * len(unreadable))
    every = every.rename(columns={"exact_of": "same_pixels_as", "set": "duplicate_of"})
    every.to_parquet(folder / AUDIT, index=False)
    write_csv(summarise(every, config.audit.model_dump()), folder / SUMMARY)


def slide_counts(audit: pd.DataFrame) -> pd.DataFrame:
    """Counts and mean colours of each slide: ``slide, patches, dropped, positive, red, green, blue`` and tints.

    Also ``centre``, if centres are known.
    """
    named = audit.assign(slide=audit["slide"].astype(object).fillna("(unknown)"), dropped=audit["dropped_by"] != "")
    colours = ["red", "green", "blue", *TINTS]
    grouped = named.groupby("slide")
    counts = grouped.agg(patches=("label", "size"), dropped=("dropped", "sum"), positive=("label", "mean"))
    centre = [grouped["centre"].first()] if "centre" in named else []
    return pd.concat([counts, grouped[colours].mean().round(4), *centre], axis=1).reset_index()


def open_source(config: Config) -> Source:
    """Open the configured data set, and add the configured centres and test centre to its table.

    Raises
    ------
    InputError
        The data set is missing, its layout is not as expected, or the centres do not fit it.
    """
    source = source_kind(config.data.source).open(**_options(config))
    centres = _centre_map(config)
    if centres is not None:
        source.table["centre"] = mapped_centres(source.table, centres, config.data.missing)
    if "centre" in source.table:
        check_centres(source.table)
    if config.split.test_centre:
        source.table = hold_out_centre(source.table, config.split.test_centre)
    return source


def _centre_map(config: Config) -> Path | None:
    """Path of the table of centres: its name in the data folder, or its own path; None if there is none."""
    name = config.data.centre_map
    return find_name(Path(config.data.path), name) if name else None


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """Patches, slides and share of positives of the test set and of each fold."""
    part = table["split"].where(table["split"] == "test", "fold " + table["fold"].astype(str))
    rows = [
        {
            "part": str(name),
            "patches": len(rows),
            "slides": int(rows["slide"].nunique()),
            "prevalence": round(float(rows["label"].mean()), 4),
        }
        for name, rows in table.groupby(part)
    ]
    return pd.DataFrame(rows)


def split_warnings(table: pd.DataFrame, notes: Mapping[str, Any]) -> list[str]:
    """Warnings about these patches that a reader of the scores must know.

    Parameters
    ----------
    table : DataFrame
        Table of the prepared patches.
    notes : mapping
        Notes of step 1's manifest.
    """
    warnings = [*_slide_warnings(table), *notes.get("source", {}).get("unused", ())]
    if alike := describe_look_alikes(notes.get("source", {}).get("classes", ()), "class"):
        warnings.append(f"{alike}. They have the same label; check that this is what you mean")
    if set_aside := notes["set_aside"]:
        warnings.append(f"{set_aside} patches were set aside; 1-patches/{SET_ASIDE} lists each with its reason")
    test_slides = table.loc[table["split"] == "test", "slide"].nunique()
    if 0 < test_slides < 10:
        warnings.append(
            f"the test set has only {test_slides} slides, so its intervals are rough; prefer out-of-fold intervals"
        )
    return warnings


def _slide_warnings(table: pd.DataFrame) -> Iterator[str]:
    """Warnings about the slides by which patches were split."""
    known, slides = is_known(table["slide"]), table["slide"]
    by_patch = table["group"].astype(str).str.startswith("patch:")
    if slides.isna().all():
        yield (
            "no slide is known: patches of one slide are on both sides of the split, so every score below is "
            "optimistic (by 0.06 to 0.08 AUC on real slides). --set split.groups=infer holds out clusters of similar "
            "stain instead, which reduces this by a third"
        )
    elif not known.any():
        yield (
            f"slides are inferred: {slides.nunique()} clusters of patches with similar stain replace the unknown "
            "slides. Patches of one slide are still on both sides of the split, so every score below is optimistic "
            "(by about 0.04 AUC on real slides)"
        )
    elif by_patch.any():
        yield "split.groups is 'patch': slides are known but were not used, so every score below is optimistic"
    if known.any() and (unmapped := int((~known).sum())):
        yield (
            f"{unmapped} patches have no slide in the map. They are kept together as one group, but other patches of "
            "their slides may be on the other side of the split, so scores may be optimistic"
        )
    if alike := describe_look_alikes(slides[known], "slide"):
        yield (
            f"{alike}. Each name counts as a separate slide. If two names mean one slide, it may be on both sides of "
            "the split, and scores are optimistic. Give each slide one name"
        )
    unit = "patient" if "patient" in table else "slide"
    joined = table[known].groupby(table["group"][known])[unit].nunique()
    if not by_patch.any() and (joined > 1).any():
        yield (
            f"{int(joined[joined > 1].sum())} {unit}s share duplicates with other {unit}s. They were joined into "
            f"{int((joined > 1).sum())} groups, each kept on one side of the split"
        )
    if (cut := table["group"].astype(str).str.endswith(" (test)") & known).any():
        yield (
            f"the official split divides {slides[cut].nunique()} slides between training and test, so test scores are "
            "optimistic. It was kept so that scores are comparable with published ones"
        )


def folder_digests(folder: Path, lines: Iterable[str]) -> dict[str, str]:
    """Digests of a data folder: of the content of CSV files, and of the image list ``lines`` (name, size, time)."""
    if not folder.is_dir():
        got = "got a file" if folder.exists() else "it does not exist"
        raise InputError(f"{folder}: expected the folder of the data set; {got}. Set DATA=… or --data.")
    tables = [folder / name for name in names_in(folder, ".csv")]
    digests = {path.name: file_digest(path) for path in tables if path.is_file() and not is_result(str(path))}
    listing = hashlib.sha256()
    for line in lines:
        listing.update(f"{line}\n".encode(errors="surrogateescape"))
    return digests | {"images": listing.hexdigest()}


def _check_groups(config: Config, table: pd.DataFrame) -> None:
    known = int(is_known(table["slide"]).sum())
    if config.split.groups == "infer" and known:
        raise InputError(
            f"split.groups = 'infer' is for data without slides; got a slide for {known} of {len(table)} patches. "
            "Use 'slide', which is the default."
        )


def _check_enough(config: Config, table: pd.DataFrame) -> None:
    """Check that patches can be split as configured, from labels and slides alone: duplicates are not known yet."""
    groups = base_groups(table, by_patch=config.split.groups == "patch")
    check_enough(table.assign(group=groups), test_share=config.split.test_share, folds=config.split.folds)
    check_scored(table)


def _options(config: Config) -> dict[str, Any]:
    """Options to open the configured kind of data set."""
    special: dict[str, Callable[[], Any]] = {"seed": lambda: config.seed, "path": lambda: _data_folder(config)}
    names = source_kind(config.data.source).options
    if config.data.path and "path" not in names:
        raise InputError(
            f"data.path is {config.data.path!r}, but data.source is {config.data.source!r}, which reads no folder. "
            "Use a configuration that reads one, such as CONFIG=kaggle (--config kaggle)."
        )
    return {name: special[name]() if name in special else getattr(config.data, name) for name in names}


def _data_folder(config: Config) -> Path:
    if not config.data.path:
        raise InputError(f"data.path must name the folder of a {config.data.source} data set; it is empty. Set DATA=….")
    return Path(config.data.path).resolve()
