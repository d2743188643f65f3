"""Check the bytes of model files from other people before any library loads them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from histoblend.data.errors import AWAY, InputError
from histoblend.features.networks.onnx_checks import checked_network

#: Files of a ``.keras`` archive.
KERAS_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}

#: File types that a bundle may contain. None of them can run code once checked.
SUFFIXES = (".json", ".md", ".csv", ".npy", ".onnx", ".keras", ".skops")

#: Largest JSON file that is parsed, in bytes.
MAX_JSON = 32 * 2**20

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


def read_json(name: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises
    ------
    InputError
        The content is larger than ``MAX_JSON``, nested too deeply, not JSON, or not an object.
    """
    if len(content) > MAX_JSON:
        raise InputError(f"{name}: expected at most {MAX_JSON} bytes of JSON; got {len(content)}. {AWAY}")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected JSON; got: {error}. Get the bundle again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a JSON object; got {type(value).__name__}. Get the bundle again.")
    return value


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


def read_array(name: str, content: bytes) -> np.ndarray:
    """Read a ``.npy`` file of numbers.

    Raises
    ------
    InputError
        The file is damaged, or contains Python objects.
    """
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python code, which fails in many ways
        words = str(error) or type(error).__name__
        raise InputError(f"{name}: expected an array of numbers; got: {words}. {AWAY}") from error
    return array


def _check_skops(name: str, content: bytes, trusted: Sequence[str]) -> None:
    import skops.io

    try:
        types = skops.io.get_untrusted_types(data=content)
    except Exception as error:  # skops has no common class of error
        raise InputError(f"{name}: expected a skops file; got: {type(error).__name__}: {error}. {AWAY}") from error
    unknown = sorted(set(types) - set(trusted))
    if unknown:
        known = ", ".join(trusted) or "NumPy's and built-in types"
        raise InputError(f"{name}: expected only {known}; got {', '.join(unknown)}. {AWAY}")


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
    for entry in _objects(read_json(f"{name}/config.json", config)):
        kind, module = str(entry.get("class_name")), entry.get("module")
        own = module is None or (isinstance(module, str) and module.split(".")[0] in _KERAS_MODULES)
        # Keras registers its own classes by their plain names, and others as "package>name".
        registered = entry.get("registered_name")
        if not own or kind in _CODE or (registered is not None and registered != kind):
            raise InputError(f"{name}: expected Keras' own layers; got {module or registered}.{kind}. {AWAY}")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a nested configuration."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if "class_name" in one or "registered_name" in one:
                yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one
