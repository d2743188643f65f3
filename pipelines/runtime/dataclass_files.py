"""Save and load results of an analysis: dataclasses of tables, arrays and plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.atomic import write_text_atomically

INDEX = "view.json"

_View = TypeVar("_View")


def save_dataclass(view: Any, folder: Path) -> None:
    """Write a dataclass: tables as Parquet, arrays as ``.npy``, everything else into ``view.json``.

    Parameters
    ----------
    view : dataclass
        Its fields are DataFrames, arrays, JSON values, nested dataclasses, or mappings and lists of these.
    folder : Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    # No indentation, because a page has tens of thousands of numbers.
    index = json.dumps(_save(view, folder, ""), ensure_ascii=False, default=np.generic.item)
    write_text_atomically(folder / INDEX, index)


def load_dataclass(folder: Path, kind: type[_View], *inside: type) -> _View:
    """Read what :func:`save_dataclass` wrote.

    Parameters
    ----------
    folder : Path
    kind : type
        Class of the view.
    *inside : type
        Classes of nested dataclasses.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    view: _View = _load(index, folder, {class_.__name__: class_ for class_ in (kind, *inside)})
    return view


def _save(value: Any, folder: Path, name: str) -> dict[str, Any]:
    """Write a value's files. Return the entry that tells how to load it."""
    if isinstance(value, pd.DataFrame):
        value.to_parquet(folder / f"{name}.parquet")
        return {"table": f"{name}.parquet"}
    if isinstance(value, np.ndarray):
        np.save(folder / f"{name}.npy", value, allow_pickle=False)
        return {"array": f"{name}.npy"}
    prefix = f"{name}-" if name else ""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        entries = {field: _save(getattr(value, field), folder, f"{prefix}{field}") for field in fields}
        return {"kind": type(value).__name__, "fields": entries}
    if _is_plain(value):
        return {"value": value}
    if isinstance(value, Mapping):
        return {"mapping": {key: _save(item, folder, f"{prefix}{key}") for key, item in value.items()}}
    return {"list": [_save(item, folder, f"{prefix}{number}") for number, item in enumerate(value)]}


def _is_plain(value: Any) -> bool:
    """Whether JSON can store a value. Tuples are loaded as lists, NumPy numbers as Python numbers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, np.generic))


def _load(node: Mapping[str, Any], folder: Path, classes: Mapping[str, type]) -> Any:
    if "table" in node:
        return pd.read_parquet(folder / node["table"])
    if "array" in node:
        return open_array(folder / node["array"])
    if "fields" in node:
        return classes[node["kind"]](**{name: _load(item, folder, classes) for name, item in node["fields"].items()})
    if "mapping" in node:
        return {key: _load(item, folder, classes) for key, item in node["mapping"].items()}
    if "list" in node:
        return [_load(item, folder, classes) for item in node["list"]]
    return node["value"]
