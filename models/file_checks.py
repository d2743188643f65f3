"""Check the bytes of model files from other people before any library loads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from histoblend.data.errors import AWAY, InputError
from histoblend.data.storage.expansion import read_array, read_json, read_zip
from histoblend.features.networks.keras_checks import check_keras, objects
from histoblend.features.networks.onnx_checks import checked_network

#: File types that a bundle may contain. None of them can run code once checked.
SUFFIXES = (".json", ".md", ".csv", ".npy", ".onnx", ".keras", ".skops")

#: Parts of a skops file. Those with parts of their own, and arrays, may be used once; otherwise they could double.
_NODES = ("ObjectNode", "DictNode", "ListNode", "TupleNode", "NdArrayNode")
_PLAIN_NODES = ("JsonNode", "TypeNode")
_SCHEMA = "schema.json"


def check_content(name: str, content: bytes, trusted: Sequence[str] = ()) -> None:
    """Refuse a file that could run code.

    Parameters
    ----------
    name : str
        The file's name: its ending gives the type, and messages quote it.
    content : bytes
    trusted : sequence of str
        The types of ours that a skops file may contain, besides those that skops trusts itself.

    Raises
    ------
    InputError
        The file type is unknown, or the file contains a type, layer or value that is not allowed.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{name}: expected one of {', '.join(SUFFIXES)}; got another file type. {AWAY}")
    if suffix == ".skops":
        _check_skops(name, content, trusted)
    elif suffix == ".keras":
        check_keras(name, content)
    elif suffix == ".onnx":
        checked_network(name, content)
    elif suffix == ".npy":
        read_array(name, content)
    elif suffix == ".json":
        read_json(name, content)


#: How pydantic reads the dataclasses that a bundle stores.
STORED = ConfigDict(extra="forbid", allow_inf_nan=False)

T = TypeVar("T")


def read_as(kind: type[T], value: Any, name: str) -> T:
    """Read a value from JSON as a dataclass or a pydantic model.

    Parameters
    ----------
    kind : type
        With :data:`STORED` as ``__pydantic_config__`` or ``model_config``, unknown names are refused.
    value
        Parsed JSON.
    name : str
        Name of the value, for messages.

    Raises
    ------
    InputError
        The value has another structure, or contains NaN.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{name}: {first_fault(error)}. Get the bundle again.") from error


def first_fault(error: ValidationError) -> str:
    """Return where a value first differs from its pydantic model, and how."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}; got {str(fault['input'])[:80]!r}".removeprefix(": ")


def _check_skops(name: str, content: bytes, trusted: Sequence[str]) -> None:
    import skops.io

    members = read_zip(name, content)
    schema = read_json(f"{name}/{_SCHEMA}", members.pop(_SCHEMA, b"{}"))
    for member, array in members.items():
        read_array(f"{name}/{member}", array)
    fault = _schema_fault(schema)
    try:
        fault = fault or ", ".join(sorted(set(skops.io.get_untrusted_types(data=content)) - set(trusted)))
    except Exception as error:  # skops has no common class of error
        raise InputError(f"{name}: expected a skops file; got: {type(error).__name__}: {error}. {AWAY}") from error
    if fault:
        known = ", ".join(trusted) or "NumPy's and built-in types"
        raise InputError(f"{name}: expected only {known}; got {fault}. {AWAY}")


def _schema_fault(schema: dict[str, Any]) -> str:
    """Return what a skops file has that could expand: a part that is used twice, or another kind of part."""
    used: set[str] = set()
    plain: set[str] = set()
    for node in objects(schema, "__loader__"):
        loader = node["__loader__"]
        if loader in _PLAIN_NODES:
            if not isinstance(node.get("content", ""), str) or str(node.get("content", ""))[:1] in ("[", "{"):
                return f"a {loader} with parts"
            plain.add(f"__id__ {node.get('__id__')}")
        elif loader not in _NODES or (loader == "NdArrayNode" and node.get("type") != "numpy"):
            return f"a {loader} of {node.get('__module__')}.{node.get('__class__')}"
        else:
            parts = [f"{key} {node[key]}" for key in ("__id__", "file") if key in node]
            if not used.isdisjoint(parts):
                return f"a {loader} twice"
            used.update(parts)
    return "" if used.isdisjoint(plain) else "a part twice, by its number"
