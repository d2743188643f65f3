"""Results of an analysis as files: a dataclass of tables, arrays and plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.atomic import write_text_whole

INDEX = "view.json"

_View = TypeVar("_View")


def save_view(view: Any, folder: Path) -> None:
    """Write a dataclass: tables as Parquet, arrays as ``.npy``, the rest into ``view.json``.

    Parameters
    ----------
    view : dataclass
        Of DataFrames, arrays, such dataclasses, mappings and lists of these, and what JSON can hold.
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without indentation: what a page shows has tens of thousands of numbers.
    index = json.dumps(_save(view, folder, ""), ensure_ascii=False, default=np.generic.item)
    write_text_whole(folder / INDEX, index)


def load_view(folder: Path, kind: type[_View], *inside: type) -> _View:
    """Read what :func:`save_view` wrote.

    Parameters
    ----------
    folder : Path
    kind : type
        Of the view.
    *inside : type
        Dataclasses that stand in it.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    view: _View = _load(index, folder, {each.__name__: each for each in (kind, *inside)})
    return view


def _save(value: Any, folder: Path, name: str) -> dict[str, Any]:
    """Write a value's files; return how it is found again."""
    if isinstance(value, pd.DataFrame):
        value.to_parquet(folder / f"{name}.parquet")
        return {"table": f"{name}.parquet"}
    if isinstance(value, np.ndarray):
        np.save(folder / f"{name}.npy", value, allow_pickle=False)
        return {"array": f"{name}.npy"}
    start = f"{name}-" if name else ""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        parts = {field: _save(getattr(value, field), folder, f"{start}{field}") for field in fields}
        return {"kind": type(value).__name__, "fields": parts}
    if _is_plain(value):
        return {"value": value}
    if isinstance(value, Mapping):
        return {"mapping": {key: _save(each, folder, f"{start}{key}") for key, each in value.items()}}
    return {"list": [_save(each, folder, f"{start}{number}") for number, each in enumerate(value)]}


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value; a tuple comes back as a list, NumPy's numbers as Python's."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, np.generic))


def _load(node: Mapping[str, Any], folder: Path, kinds: Mapping[str, type]) -> Any:
    if "table" in node:
        return pd.read_parquet(folder / node["table"])
    if "array" in node:
        return open_array(folder / node["array"])
    if "fields" in node:
        return kinds[node["kind"]](**{name: _load(each, folder, kinds) for name, each in node["fields"].items()})
    if "mapping" in node:
        return {key: _load(each, folder, kinds) for key, each in node["mapping"].items()}
    if "list" in node:
        return [_load(each, folder, kinds) for each in node["list"]]
    return node["value"]
