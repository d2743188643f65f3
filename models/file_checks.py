"""What a model file from elsewhere may hold: found out from its bytes, before anything in it is loaded."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pydantic import ValidationError

from histoblend.data.errors import InputError

#: What a ``.keras`` archive consists of.
KERAS_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}

#: Kinds of files that a bundle may hold, none of which runs code.
SUFFIXES = (".json", ".md", ".csv", ".npy", ".onnx", ".keras", ".skops")

#: Largest description of a network, or index of a bundle, that is parsed, in bytes.
MOST_JSON = 32 * 2**20

#: Objects of Keras that hold no code of their own; Lambda layers hold nothing else.
_KERAS_MODULES = ("keras", "builtins")
_CODE = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "__lambda__", "function", "__function__")


def check_content(name: str, content: bytes, trusted: Sequence[str] = ()) -> None:
    """Look at one file's bytes for what could run code.

    Parameters
    ----------
    name : str
        The file's name, for its kind and for messages.
    content : bytes
    trusted : sequence of str
        The only types of ours that a skops file may hold; skops itself vouches for NumPy's and the built-in ones.

    Raises
    ------
    InputError
        Its kind is unknown, or it holds a type, a layer or a value that is not on the list.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{name}: expected one of {', '.join(SUFFIXES)}; got a file of another kind. {_AWAY}")
    if suffix == ".skops":
        _check_skops(name, content, trusted)
    elif suffix == ".keras":
        _check_keras(name, content)
    elif suffix == ".onnx":
        _check_onnx(name, content)
    elif suffix == ".npy":
        read_array(name, content)
    elif suffix == ".json":
        read_json(name, content)


_AWAY = "Do not load it: it was not written by this program."


def read_json(name: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object of a sensible size.

    Raises
    ------
    InputError
        It is larger, nested too deeply, no JSON, or no object.
    """
    if len(content) > MOST_JSON:
        raise InputError(f"{name}: expected at most {MOST_JSON} bytes of JSON; got {len(content)}. {_AWAY}")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected JSON; got: {error}. Get the bundle again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a JSON object; got {type(value).__name__}. Get the bundle again.")
    return value


def check_shape(name: str, value: Any, shape: Any) -> None:
    """Check that a value out of JSON is made up as it should be.

    Parameters
    ----------
    name : str
        Where it stands, for messages.
    value
    shape
        A type (``float`` takes whole numbers too, and neither takes NaN); a list of one shape, for all values; or a
        dict from names to shapes, where ``...`` stands for every name. Other names than these may be there.

    Raises
    ------
    InputError
        It is made up otherwise.
    """
    kind = shape if isinstance(shape, type) else type(shape)
    wanted = (int, float) if kind is float else kind
    fits = isinstance(value, wanted) and not (isinstance(value, bool) and kind in (int, float))
    if not fits or (kind is float and not math.isfinite(value)):
        raise InputError(f"{name}: expected {kind.__name__}; got {str(value)[:80]!r}. Get the bundle again.")
    if isinstance(shape, list):
        for one in value:
            check_shape(name, one, shape[0])
    if isinstance(shape, dict):
        for key in value if ... in shape else shape:
            if key not in value:
                raise InputError(f"{name}: expected {key}; there is none. Get the bundle again.")
            check_shape(f"{name}.{key}", value[key], shape[... if ... in shape else key])


def first_fault(error: ValidationError) -> str:
    """Return where a value first differs from its pydantic model, and how."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    return f"{where}: {fault['msg']}".removeprefix(": ")


def read_array(name: str, content: bytes) -> np.ndarray:
    """Read a ``.npy`` file that holds numbers.

    Raises
    ------
    InputError
        It is damaged, or holds Python objects.
    """
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header with Python's own tokenizer, which fails in many ways
        words = str(error) or type(error).__name__
        raise InputError(f"{name}: expected an array of numbers; got: {words}. {_AWAY}") from error
    return array


def _check_onnx(name: str, content: bytes) -> None:
    """Refuse a network that takes numbers from other files, which could be any on this machine."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        network = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise InputError(f"{name}: expected an ONNX file; got: {error}. Get the bundle again.") from error
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in network.graph.initializer):
        raise InputError(f"{name}: expected a network that holds all its numbers; got references to files. {_AWAY}")


def _check_skops(name: str, content: bytes, trusted: Sequence[str]) -> None:
    import skops.io

    try:
        found = skops.io.get_untrusted_types(data=content)
    except Exception as error:  # skops meets a foreign or damaged file with no common class of error
        raise InputError(f"{name}: expected a file of skops; got: {type(error).__name__}: {error}. {_AWAY}") from error
    unknown = sorted(set(found) - set(trusted))
    if unknown:
        known = ", ".join(trusted) or "NumPy's types and built-in ones"
        raise InputError(f"{name}: expected only {known}; got {', '.join(unknown)}. {_AWAY}")


def _check_keras(name: str, content: bytes) -> None:
    """Accept Keras' own layers and nothing that carries code, whatever Keras' safe mode would say."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            foreign = sorted(set(archive.namelist()) - KERAS_MEMBERS)
            size = archive.getinfo("config.json").file_size
            if foreign or size > MOST_JSON:
                found = f"{foreign[0]!r}" if foreign else f"a config.json of {size} bytes"
                raise InputError(f"{name}: expected {', '.join(sorted(KERAS_MEMBERS))} alone; got {found}. {_AWAY}")
            config = archive.read("config.json")
    except InputError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and zlib fail in many ways
        raise InputError(f"{name}: expected a .keras archive; got: {error}. {_AWAY}") from error
    for entry in _objects(read_json(f"{name}/config.json", config)):
        kind, module = str(entry.get("class_name")), entry.get("module")
        own = module is None or (isinstance(module, str) and module.split(".")[0] in _KERAS_MODULES)
        # Keras registers its own classes under their plain names, others as "package>name".
        registered = entry.get("registered_name")
        if not own or kind in _CODE or (registered is not None and registered != kind):
            raise InputError(f"{name}: expected Keras' own layers; got {module or registered}.{kind}. {_AWAY}")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every described object in a configuration, however deep."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if "class_name" in one or "registered_name" in one:
                yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one
