"""Check the bytes of model files from other people before any library loads them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from histoblend.data.errors import AWAY, InputError
from histoblend.data.storage.expansion import MAX_JSON, read_array, read_json, read_zip
from histoblend.features.networks.onnx_checks import checked_network

#: Files of a ``.keras`` archive.
KERAS_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}

#: File types that a bundle may contain. None of them can run code once checked.
SUFFIXES = (".json", ".md", ".csv", ".npy", ".onnx", ".keras", ".skops")

#: Parts of a skops file. Those with parts of their own, and arrays, may be used once; otherwise they could double.
_NODES = ("ObjectNode", "DictNode", "ListNode", "TupleNode", "NdArrayNode")
_PLAIN_NODES = ("JsonNode", "TypeNode")
_SCHEMA = "schema.json"

#: Modules whose Keras objects are accepted. Of these, the classes in ``_CODE`` carry code and are refused.
_KERAS_MODULES = ("keras", "builtins")
_CODE = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "__lambda__", "function", "__function__")


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
        _check_keras(name, content)
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
    if fault := _schema_fault(schema):
        raise InputError(f"{name}: expected numbers, text and arrays, each once; got {fault}. {AWAY}")
    try:
        types = skops.io.get_untrusted_types(data=content)
    except Exception as error:  # skops has no common class of error
        raise InputError(f"{name}: expected a skops file; got: {type(error).__name__}: {error}. {AWAY}") from error
    unknown = sorted(set(types) - set(trusted))
    if unknown:
        known = ", ".join(trusted) or "NumPy's and built-in types"
        raise InputError(f"{name}: expected only {known}; got {', '.join(unknown)}. {AWAY}")


def _schema_fault(schema: dict[str, Any]) -> str:
    """Return what a skops file has that could expand: a part that is used twice, or another kind of part."""
    used: set[str] = set()
    for node in _objects(schema, "__loader__"):
        loader = node["__loader__"]
        if loader in _PLAIN_NODES:
            if not isinstance(node.get("content", ""), str) or str(node.get("content", ""))[:1] in ("[", "{"):
                return f"a {loader} with parts"
        elif loader not in _NODES or (loader == "NdArrayNode" and node.get("type") != "numpy"):
            return f"a {loader} of {node.get('__module__')}.{node.get('__class__')}"
        else:
            parts = [f"{key} {node[key]}" for key in ("__id__", "file") if key in node]
            if not used.isdisjoint(parts):
                return f"a {loader} twice"
            used.update(parts)
    return ""


def _check_keras(name: str, content: bytes) -> None:
    """Accept only Keras' own layers, and none that carries code. This does not rely on Keras' safe mode."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unknown = sorted(set(archive.namelist()) - KERAS_MEMBERS)
            size = archive.getinfo("config.json").file_size
            if unknown or size > MAX_JSON:
                what = f"{unknown[0]!r}" if unknown else f"a config.json of {size} bytes"
                raise InputError(f"{name}: expected only {', '.join(sorted(KERAS_MEMBERS))}; got {what}. {AWAY}")
            config = archive.read("config.json")
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib fail in many ways on a damaged archive
        raise InputError(f"{name}: expected a .keras archive; got: {error}. {AWAY}") from error
    for entry in _objects(read_json(f"{name}/config.json", config), "class_name", "registered_name"):
        kind, module = str(entry.get("class_name")), entry.get("module")
        own = module is None or (isinstance(module, str) and module.split(".")[0] in _KERAS_MODULES)
        # Keras registers its own classes by their plain names, and others as "package>name".
        registered = entry.get("registered_name")
        if not own or kind in _CODE or (registered is not None and registered != kind):
            raise InputError(f"{name}: expected Keras' own layers; got {module or registered}.{kind}. {AWAY}")


def _objects(value: Any, *marks: str) -> Iterator[dict[str, Any]]:
    """Yield every object of a nested configuration that has one of these keys."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if not one.keys().isdisjoint(marks):
                yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one
