"""Step 1: decode every patch once, split by slide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from data.errors import InputError
from data.labels import UNMAPPED
from data.patches import Source, write_pixels, write_table, write_unlabelled
from data.sources import source_kind
from data.splits import assign_splits, check_enough
from pipelines.artefacts import Outcome, StepSpec, file_digest
from pipelines.config import Config
from pipelines.console import Screen

SET_ASIDE = "set_aside.csv"
UNLABELLED = "unlabelled"


def prepare_spec(config: Config) -> StepSpec:
    """What the prepared patches depend on."""
    kind = source_kind(config.data.source)
    options = {**_options(config), "source": kind.name, "strict": config.data.strict}
    options.pop("seed", None)
    inputs = folder_digests(options["path"], kind.content(**_options(config))) if "path" in options else {}
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    section = {"data": options, "split": config.split.model_dump()}
    return StepSpec("prepare", "1-patches", ("data", "pipelines/prepare.py"), section, inputs, config.seed)


def prepare(config: Config, folder: Path, *, workers: int, screen: Screen) -> Outcome:
    """Write ``pixels.npy``, ``patches.parquet`` and ``set_aside.csv`` into ``folder``."""
    source = open_source(config)
    # Labels and slides are known now: an impossible split must not be found after hours of decoding.
    check_enough(source.table, test_share=config.split.test_share, folds=config.split.folds)
    with screen.progress("decoding", len(source.table)) as progress:
        table, set_aside = write_pixels(source, folder, workers=workers, strict=config.data.strict, progress=progress)
    skipped = getattr(source, "skipped", {})
    if skipped:
        more = pd.DataFrame({"patch_id": list(skipped), "reason": list(skipped.values())})
        set_aside = pd.concat([set_aside, more], ignore_index=True)
    set_aside.to_csv(folder / SET_ASIDE, index=False)
    table = assign_splits(table, test_share=config.split.test_share, folds=config.split.folds, seed=config.seed)
    write_table(table, folder)
    notes = {"set_aside": len(set_aside), "balance": balance(table).to_dict("records")}
    return Outcome(len(table), notes | _source_notes(config, source, folder, workers, screen))


def _source_notes(config: Config, source: Source, folder: Path, workers: int, screen: Screen) -> dict[str, Any]:
    """How the source read its files; writes its patches without labels, where it has any, into ``unlabelled/``."""
    notes: dict[str, Any] = {"source": getattr(source, "notes", {})}
    rest: Source | None = getattr(source, "unlabelled", None)
    if rest is None:
        return notes
    with screen.progress("decoding unlabelled", len(rest.table)) as progress:
        place, strict = folder / UNLABELLED, config.data.strict
        set_aside = write_unlabelled(rest, place, workers=workers, strict=strict, progress=progress)
    set_aside.to_csv(place / SET_ASIDE, index=False)
    return notes | {"unlabelled": len(rest.table), "unlabelled_set_aside": len(set_aside)}


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


def split_warnings(table: pd.DataFrame, set_aside: int) -> list[str]:
    """What a reader must know about these patches before believing a score."""
    warnings = []
    if table["slide"].isna().all():
        warnings.append(
            "no slide is known for any patch: patches of one slide stand on both sides of the split, "
            "so every score below is optimistic (by 0.06 to 0.08 AUC on real slides)"
        )
    elif (unmapped := int((table["slide"] == UNMAPPED).sum())) > 0:
        warnings.append(
            f"{unmapped} patches have no slide in the map: they are kept together as one group, but the slides that "
            "they come from may stand on the other side of the split, so scores may be optimistic"
        )
    if set_aside:
        warnings.append(f"{set_aside} patches were set aside; 1-patches/{SET_ASIDE} lists each with its reason")
    test_slides = table.loc[table["split"] == "test", "slide"].nunique()
    if 0 < test_slides < 10:
        warnings.append(
            f"the test set has only {test_slides} slides: its intervals are rough, out-of-fold ones say more"
        )
    return warnings


def folder_digests(folder: Path, lines: Iterable[str]) -> dict[str, str]:
    """What stands for a data folder's content: CSV files by hash, images by ``lines`` (name, size, time of change)."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of the data set; it does not exist. Give DATA=… or --data.")
    digests = {path.name: file_digest(path) for path in sorted(folder.glob("*.csv")) if path.is_file()}
    listing = hashlib.sha256()
    for line in lines:
        listing.update(f"{line}\n".encode(errors="surrogateescape"))
    return digests | {"images": listing.hexdigest()}


def _options(config: Config) -> dict[str, Any]:
    """What the configured kind of data set is opened with."""
    special: dict[str, Callable[[], Any]] = {"seed": lambda: config.seed, "path": lambda: _data_folder(config)}
    names = source_kind(config.data.source).options
    if config.data.path and "path" not in names:
        raise InputError(
            f"data.path is {config.data.path!r}, but data.source is {config.data.source!r}, which reads no folder. "
            "Name a configuration that does, such as CONFIG=configs/kaggle.toml (--config configs/kaggle.toml)."
        )
    return {name: special[name]() if name in special else getattr(config.data, name) for name in names}


def _data_folder(config: Config) -> Path:
    if not config.data.path:
        raise InputError(
            f"data.path must name the folder of a {config.data.source} data set; got nothing. Give DATA=…."
        )
    return Path(config.data.path).resolve()
