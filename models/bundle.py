"""A model to take away: fitted heads, their columns and thresholds, every file under a digest, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from models.heads import LogisticHead, XGBoostHead

#: Raised when a reader of an earlier version could misread a bundle.
FORMAT = 1
INDEX = "bundle.json"

#: The only types of ours that a head's skops file may hold; skops itself vouches for NumPy's and the built-in ones.
TRUSTED = ["models.heads.LogisticHead"]


def save_head(head: LogisticHead | XGBoostHead, folder: Path) -> None:
    """Write a fitted head into ``folder``: ``head.skops``, or ``head.json`` with its boosters."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(head, LogisticHead):
        import skops.io

        skops.io.dump(head, folder / "head.skops")
        return
    for number, booster in enumerate(head.boosters_):
        booster.save_model(folder / f"booster-{number}.ubj")
    state = {
        "parameters": head.get_params(),
        "classes": head.classes_.tolist(),
        "columns": head.n_features_in_,
        "boosters": [chosen.tolist() for chosen in head.columns_],
    }
    (folder / "head.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def load_head(folder: Path) -> LogisticHead | XGBoostHead:
    """Read a head that :func:`save_head` wrote.

    Raises
    ------
    InputError
        A file is missing, or holds a type that is not on the trusted list.
    """
    if (folder / "head.skops").is_file():
        import skops.io

        unknown = set(skops.io.get_untrusted_types(file=folder / "head.skops")) - set(TRUSTED)
        if unknown:
            raise InputError(
                f"{folder / 'head.skops'}: expected only {', '.join(TRUSTED)}; got {', '.join(sorted(unknown))}. "
                "Do not load it: it was not written by this program."
            )
        return skops.io.load(folder / "head.skops", trusted=TRUSTED)
    if not (folder / "head.json").is_file():
        raise InputError(f"{folder}: expected head.skops, or head.json with its boosters; found neither.")
    import xgboost

    state = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    head = XGBoostHead(**state["parameters"])
    files = [folder / f"booster-{number}.ubj" for number in range(len(state["boosters"]))]
    head.columns_ = [np.array(chosen) for chosen in state["boosters"]]
    head.boosters_ = [xgboost.Booster(model_file=str(file)) for file in files]
    head.classes_ = np.array(state["classes"])
    head.n_features_in_ = state["columns"]
    head.n_trees_ = [booster.num_boosted_rounds() for booster in head.boosters_]
    return head


def seal_bundle(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``bundle.json`` over everything in ``folder``: format, ``content`` and the SHA-256 of each file."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != INDEX
    }
    index = {"format": FORMAT, **content, "files": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False), encoding="utf-8")


def open_bundle(folder: Path) -> dict[str, Any]:
    """Check a bundle, before anything in it is loaded, and return its ``bundle.json``.

    Raises
    ------
    InputError
        There is no bundle, its format is newer, or a file is missing, altered or not listed.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: expected a bundle with {INDEX}; there is none.") from None
    except ValueError as error:
        raise InputError(f"{folder / INDEX}: expected JSON; got: {error}. Get the bundle again.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else index
        raise InputError(f"{folder}: expected bundle format {FORMAT}; got {found!r}. Use the version that made it.")
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {INDEX}
    for name in sorted(present ^ set(index["files"])):
        raise InputError(f"{folder}: {name} is {'not listed' if name in present else 'missing'}. Get the bundle again.")
    for name, digest in index["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise InputError(f"{folder}: {name} was altered (its SHA-256 differs). Get the bundle again.")
    return index
