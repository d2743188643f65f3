"""Step 1: decode every patch once, audit, split by group."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.audit.flags import choose_examples, decide, examine, reason, summarise
from histoblend.data.audit.inferred_slides import TINTS, clusters_for, infer_slides
from histoblend.data.audit.measures import Measures, measure
from histoblend.data.errors import InputError
from histoblend.data.names import look_alike_words
from histoblend.data.patches import (
    PIXELS,
    Source,
    drop_rows,
    forget_chunks,
    read_rows,
    remedy,
    write_pixels,
    write_table,
    write_unlabelled,
)
from histoblend.data.scored_parts import check_scored
from histoblend.data.sources.own_results import is_result
from histoblend.data.sources.registry import source_kind
from histoblend.data.splits import UNMAPPED, assign_splits, base_groups, check_enough, is_known, unite
from histoblend.data.storage.arrays import names_in
from histoblend.data.storage.spreadsheet import write_csv
from histoblend.pipelines.config import Config
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
from histoblend.pipelines.runtime.artefacts import Outcome, file_digest
from histoblend.pipelines.runtime.resources import check_disk
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def settings(config: Config) -> dict[str, Any]:
    """The part of the configuration that the prepared patches depend on."""
    options = {**_options(config), "source": config.data.source, "strict": config.data.strict}
    options.pop("seed", None)
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return {"data": options, "split": config.split.model_dump(), "audit": config.audit.model_dump()}


def inputs(run: Run) -> dict[str, str]:
    """Digests of the data folder's content; none where the source reads no folder."""
    options = _options(run.config)
    content = source_kind(run.config.data.source).content
    return folder_digests(options["path"], content(**options)) if "path" in options else {}


def build(run: Run, folder: Path) -> Outcome:
    """Prepare the patches of a run."""
    return prepare(run.config, folder, workers=run.workers, screen=run.screen)


def prepare(config: Config, folder: Path, *, workers: int, screen: Screen) -> Outcome:
    """Write ``pixels.npy``, ``patches.parquet``, ``set_aside.csv`` and what the audit found into ``folder``."""
    source = open_source(config)
    _check_groups(config, source.table)
    # Labels and slides are known now: an impossible split must not be found after hours of decoding.
    _check_enough(config, source.table)
    _check_room(source, folder)
    with screen.progress("decoding", len(source.table)) as progress:
        table, lost, measured = write_pixels(
            source, folder, workers=workers, strict=config.data.strict, measure=_measured, progress=progress
        )
    if len(lost) and (advice := remedy(source, lost["reason"])):
        screen.warn(f"{len(lost)} patches cannot be read (first: {lost['reason'].iloc[0]}). {advice}")
    measures = Measures.join([Measures(**each) for each in measured])
    measured.clear()
    table, audit = audit_patches(config, table, measures)
    del measures
    dropped = audit["dropped_by"] != ""
    write_audit(audit, source.table[source.table["patch_id"].isin(lost["patch_id"])], config, folder)
    if dropped.all():
        why = audit["dropped_by"].map(reason).value_counts().index[0]
        raise InputError(
            f"expected patches to learn from; the audit drops all {len(audit)} (most often: {why}). "
            "Mend the data, or keep them: `settings` lists what audit.* takes."
        )
    if dropped.any():
        drop_rows(folder, ~dropped.to_numpy())
        table = table[~dropped].reset_index(drop=True)
    forget_chunks(folder)
    skipped = getattr(source, "skipped", {})
    more = pd.DataFrame({"patch_id": list(skipped), "reason": list(skipped.values())})
    gone = audit.loc[dropped, ["patch_id"]].assign(reason=audit.loc[dropped, "dropped_by"].map(reason))
    set_aside = pd.concat([lost, gone, more], ignore_index=True)
    write_csv(set_aside, folder / SET_ASIDE)
    table = assign_splits(table, test_share=config.split.test_share, folds=config.split.folds, seed=config.seed)
    check_scored(table)
    write_table(table, folder)
    notes = {"set_aside": len(set_aside), "balance": balance(table).to_dict("records")}
    return Outcome(len(table), notes | _source_notes(config, source, folder, workers, screen))


def _measured(patches: np.ndarray) -> dict[str, np.ndarray]:
    """What is measured on patches, as arrays that can be kept in a file."""
    return vars(measure(patches))


def _check_room(source: Source, folder: Path) -> None:
    """See that the disk holds all decoded patches; what a broken run left of them is written over."""
    sources = [(PIXELS, source), (f"{UNLABELLED}/{PIXELS}", getattr(source, "unlabelled", None))]
    kept = [(folder / name, len(part.table) * 3 * part.size**2) for name, part in sources if part is not None]
    needed = sum(size - (path.stat().st_size if path.is_file() else 0) for path, size in kept)
    check_disk(folder, needed, f"{sum(len(part.table) for _, part in sources if part is not None)} decoded patches")


def _source_notes(config: Config, source: Source, folder: Path, workers: int, screen: Screen) -> dict[str, Any]:
    """How the source read its files; writes its patches without labels, where it has any, into ``unlabelled/``."""
    notes: dict[str, Any] = {"source": getattr(source, "notes", {})}
    rest: Source | None = getattr(source, "unlabelled", None)
    if rest is None:
        return notes
    with screen.progress("decoding unlabelled", len(rest.table)) as progress:
        place, strict = folder / UNLABELLED, config.data.strict
        set_aside = write_unlabelled(rest, place, workers=workers, strict=strict, progress=progress)
    write_csv(set_aside, place / SET_ASIDE)
    if len(set_aside):
        first = ", ".join(repr(name) for name in set_aside["patch_id"][:3])
        screen.warn(
            f"{len(set_aside)} patches without label cannot be predicted (first: {first}); 1-patches/{UNLABELLED}/"
            f"{SET_ASIDE} gives each reason, and {SUBMISSION} will give them the training patches' share of positives"
        )
    if unlisted := getattr(rest, "unlisted", []):
        screen.warn(
            f"{len(unlisted)} patches without label are not in the data set's list of ids (first: {unlisted[0]!r}): "
            f"{SUBMISSION} will hold them as well, and Kaggle refuses a submission with other ids than its own"
        )
    return notes | {"unlabelled": len(rest.table), "unlabelled_set_aside": len(set_aside)}


def audit_patches(config: Config, table: pd.DataFrame, measures: Measures) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flag decoded patches and decide what follows.

    Returns
    -------
    table : DataFrame
        With ``group``; and with inferred slides, where that was asked for.
    audit : DataFrame
        From :func:`data.audit.flags.examine`, with ``dropped_by``; rows as in ``table``.
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


def write_audit(audit: pd.DataFrame, lost: pd.DataFrame, config: Config, folder: Path) -> None:
    """Write the audit table, its summary, what each slide is like and a few pictures of what was flagged.

    Parameters
    ----------
    audit : DataFrame
        Decoded patches, with ``dropped_by``; rows as in ``pixels.npy``.
    lost : DataFrame
        ``patch_id, label, slide`` of patches that could not be read.
    config : Config
    folder : Path
    """
    examples = choose_examples(audit)
    rows = examples["row"].to_numpy(dtype=int)
    np.save(folder / PICTURES, read_rows(folder, rows))
    shown = audit.loc[rows, ["patch_id", "slide", "label", "similarity", "dropped_by"]].reset_index(drop=True)
    write_csv(pd.concat([examples["flag"], shown], axis=1), folder / EXAMPLES)
    write_csv(slide_counts(audit), folder / SLIDES)
    unread = lost[["patch_id", "label", "slide"]].assign(undecodable=True, dropped_by="undecodable")
    flags = audit.select_dtypes(bool).columns
    whole = pd.concat([audit, unread], ignore_index=True) if len(unread) else audit
    whole[flags] = whole[flags].fillna(False).astype(bool)
    # Names say more than row numbers, which dropping shifts.
    ids = audit["patch_id"].to_numpy()
    for column in ("exact_of", "set"):
        names = ids[audit[column]]
        whole[column] = np.append(np.where(names == ids, "", names), [""] * len(unread))
    whole = whole.rename(columns={"exact_of": "same_pixels_as", "set": "duplicate_of"})
    whole.to_parquet(folder / AUDIT, index=False)
    write_csv(summarise(whole, config.audit.model_dump()), folder / SUMMARY)


def slide_counts(audit: pd.DataFrame) -> pd.DataFrame:
    """What each slide holds and looks like: ``slide, patches, dropped, positive, red, green, blue`` and tints."""
    named = audit.assign(slide=audit["slide"].astype(object).fillna("(unknown)"), dropped=audit["dropped_by"] != "")
    colours = ["red", "green", "blue", *TINTS]
    grouped = named.groupby("slide")
    counts = grouped.agg(patches=("label", "size"), dropped=("dropped", "sum"), positive=("label", "mean"))
    return pd.concat([counts, grouped[colours].mean().round(4)], axis=1).reset_index()


def open_source(config: Config) -> Source:
    """The configured data set, opened.

    Raises
    ------
    InputError
        It is missing or not laid out as expected.
    """
    return source_kind(config.data.source).open(**_options(config))


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
    """What a reader must know about these patches before believing a score.

    Parameters
    ----------
    table : DataFrame
        Of the prepared patches.
    notes : mapping
        Of step 1's manifest.
    """
    warnings = [*_slide_warnings(table)]
    if alike := look_alike_words(notes.get("source", {}).get("classes", ()), "class"):
        warnings.append(f"{alike}. They were given the same label: check that each is what you mean")
    if set_aside := notes["set_aside"]:
        warnings.append(f"{set_aside} patches were set aside; 1-patches/{SET_ASIDE} lists each with its reason")
    test_slides = table.loc[table["split"] == "test", "slide"].nunique()
    if 0 < test_slides < 10:
        warnings.append(
            f"the test set has only {test_slides} slides: its intervals are rough, out-of-fold ones say more"
        )
    return warnings


def _slide_warnings(table: pd.DataFrame) -> Iterator[str]:
    """What is wrong with the slides that patches were split by."""
    known, slides = is_known(table["slide"]), table["slide"]
    by_patch = table["group"].astype(str).str.startswith("patch:")
    if slides.isna().all():
        yield (
            "no slide is known for any patch: patches of one slide stand on both sides of the split, "
            "so every score below is optimistic (by 0.06 to 0.08 AUC on real slides); "
            "--set split.groups=infer holds out clusters of like stain instead, which takes a third of that off"
        )
    elif not known.any():
        yield (
            f"slides are inferred: {slides.nunique()} clusters of patches with like stain stand in for slides that "
            "nobody knows. Patches of one slide still stand on both sides of the split, so every score below is "
            "optimistic (by about 0.04 AUC on real slides)"
        )
    elif by_patch.any():
        yield "split.groups is 'patch': slides are known and were not used, so every score below is optimistic"
    if known.any() and (unmapped := int((~known).sum())):
        yield (
            f"{unmapped} patches have no slide in the map: they are kept together as one group, but the slides that "
            "they come from may stand on the other side of the split, so scores may be optimistic"
        )
    if alike := look_alike_words(slides[known], "slide"):
        yield (
            f"{alike}. Each counts as a slide of its own: if two of them are one slide, it may be on both sides of the "
            "split, and scores are optimistic. Give a slide one name"
        )
    joined = table[known].groupby(table["group"][known])["slide"].nunique()
    if not by_patch.any() and (joined > 1).any():
        yield (
            f"{int(joined[joined > 1].sum())} slides share duplicates with others: they were united into "
            f"{int((joined > 1).sum())} groups, each kept on one side of the split"
        )
    if (cut := table["group"].astype(str).str.endswith(" (test)") & known).any():
        yield (
            f"the official split cuts {slides[cut].nunique()} slides in two: test scores are optimistic. "
            "It was kept, so that scores compare with published ones"
        )


def folder_digests(folder: Path, lines: Iterable[str]) -> dict[str, str]:
    """What stands for a data folder's content: CSV files by hash, images by ``lines`` (name, size, time of change)."""
    if not folder.is_dir():
        got = "got a file" if folder.exists() else "it does not exist"
        raise InputError(f"{folder}: expected the folder of the data set; {got}. Give DATA=… or --data.")
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
    """See that patches can be split as configured, as far as labels and slides tell before duplicates are known."""
    groups = base_groups(table, by_patch=config.split.groups == "patch")
    check_enough(table.assign(group=groups), test_share=config.split.test_share, folds=config.split.folds)
    check_scored(table)


def _options(config: Config) -> dict[str, Any]:
    """What the configured kind of data set is opened with."""
    special: dict[str, Callable[[], Any]] = {"seed": lambda: config.seed, "path": lambda: _data_folder(config)}
    names = source_kind(config.data.source).options
    if config.data.path and "path" not in names:
        raise InputError(
            f"data.path is {config.data.path!r}, but data.source is {config.data.source!r}, which reads no folder. "
            "Name a configuration that does, such as CONFIG=kaggle (--config kaggle)."
        )
    return {name: special[name]() if name in special else getattr(config.data, name) for name in names}


def _data_folder(config: Config) -> Path:
    if not config.data.path:
        raise InputError(
            f"data.path must name the folder of a {config.data.source} data set; got nothing. Give DATA=…."
        )
    return Path(config.data.path).resolve()
