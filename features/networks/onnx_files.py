"""A user's ONNX file as a backbone: checked, with fixed shapes, and with scaling and pooling inside the network.

What leaves this module is a network like those that this program exports: 0..255 RGB images to one row of numbers per
image. So bundles, prediction and clusters treat both alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histoblend.data.errors import AWAY, InputError
from histoblend.features.networks.backend import Shape
from histoblend.features.networks.engines import OnnxNetwork
from histoblend.features.networks.onnx_checks import BATCH, OPERATORS, checked_network, network_fault, parsed_network
from histoblend.features.networks.onnx_export import open_session
from histoblend.features.networks.onnx_fitting import (
    EXPORT_AGAIN,
    OnnxError,
    OnnxOptions,
    choose_output,
    fit_input,
    pool,
    prune,
    scale,
)
from histoblend.features.networks.onnx_shapes import FOLDED, ShapeError, fix_shapes
from histoblend.features.networks.recipe import ONNX_PREFIX, FileRecipe
from histoblend.features.networks.views import Size

#: A file of protobuf, and so a network with its numbers inside, can have no more bytes.
MAX_BYTES = 2**31 - 1
#: Oldest operators that are supported. Before, slices and paddings were written in another way.
OLDEST = 11
#: Side that a network without a fixed one is checked with, if patches are not resized.
FREE_SIDE = 224


@dataclass(frozen=True)
class OnnxFile:
    """A user's ONNX file. Created by :func:`read_onnx_file`.

    Attributes
    ----------
    name : str
        Name of the file.
    digests : dict from str to str
        SHA-256 (hex) of the file and of the files with its numbers, by name.
    content : bytes
        The network with all numbers inside.
    options : OnnxOptions
    """

    name: str
    digests: dict[str, str]
    content: bytes = field(repr=False)
    options: OnnxOptions

    @property
    def side(self) -> int:
        """Side of the images, px; :data:`FREE_SIDE` if it is free."""
        inputs = parsed_network(self.name, self.content).graph.input
        dims = [dim.dim_value for value in inputs for dim in value.type.tensor_type.shape.dim]
        return max(dims, default=0) if max(dims, default=0) > BATCH else FREE_SIDE

    @property
    def sha256(self) -> str:
        """One digest (hex) of all files."""
        if len(self.digests) == 1:
            return self.digests[self.name]
        return hashlib.sha256("".join(self.digests.values()).encode()).hexdigest()

    def recipe(self, shape: Shape) -> FileRecipe:
        """Describe the network, after opening it for images of this shape.

        Raises
        ------
        InputError
            As for :meth:`network`, or ONNX Runtime does not run the network.
        """
        content, width = self.network(shape)
        try:
            open_session(content)
        except Exception as error:  # ONNX Runtime's have no common class
            raise InputError(
                f"{self.name}: expected a network that ONNX Runtime {_runtime_version()} runs; got: "
                f"{' '.join(str(error).split())[:200]}. {EXPORT_AGAIN}"
            ) from error
        options = self.options
        offset, scale = ([value * options.scale for value in values] for values in (options.mean, options.std))
        return FileRecipe(f"{ONNX_PREFIX}{self.name}", self.sha256, width, options.pooling, offset, scale)

    def network(self, shape: Shape) -> tuple[bytes, int]:
        """Return the network for images of a shape, and the width of its output.

        Returns
        -------
        bytes
            ONNX file: maps (n, height, width, 3) float32 RGB, 0..255, to (n, width), where n is fixed and at most 8.
        int

        Raises
        ------
        InputError
            The network takes other images, or has other inputs or outputs than the options say.
        """
        network = parsed_network(self.name, self.content, EXPORT_AGAIN)
        try:
            images, first = fit_input(network, self.options, shape)
            output = choose_output(network, self.options.output)
            prune(network, output, images)
            shapes = fix_shapes(network, _version(network))
            width = pool(network, output, shapes.get(output), first, self.options)
            scale(network, images, first, shape, self.options)
            return checked_network(self.name, network.SerializeToString()), width
        except (ShapeError, OnnxError) as error:
            raise InputError(f"{self.name}: {error}") from error
        except InputError as error:
            raise InputError(str(error).replace(AWAY, EXPORT_AGAIN)) from error


def read_onnx_file(path: str, options: OnnxOptions | None = None) -> OnnxFile:
    """Read and check an ONNX file. Numbers may be in other files of the same folder.

    Raises
    ------
    InputError
        The file or a file with its numbers is missing or damaged. Or the network has foreign operators or functions, or
        operators of a version that is not supported.
    """
    options = options or OnnxOptions()
    options.check()
    file = Path(path).expanduser()
    if file.suffix.lower() != ".onnx" or not file.is_file():
        raise InputError(f"embeddings.backbone: expected an existing file after {ONNX_PREFIX!r}, .onnx; got {path!r}.")
    try:
        content = _read(file)
        network = parsed_network(file.name, content, EXPORT_AGAIN)
        digests = {file.name: hashlib.sha256(content).hexdigest(), **_take_numbers(network, file)}
        _check_network(network)
        return OnnxFile(file.name, digests, network.SerializeToString(), options)
    except OnnxError as error:
        raise InputError(f"{file.name}: {error}") from error


def _read(file: Path, before: int = 0) -> bytes:
    """Read a file, if all files have at most 2 GB together with the ``before`` bytes of earlier ones."""
    total = before + file.stat().st_size
    if total > MAX_BYTES:
        raise OnnxError(f"expected at most 2 GB with all numbers; got {total / 1e9:.1f} GB. Use a smaller network.")
    return file.read_bytes()


def _take_numbers(network: Any, file: Path) -> dict[str, str]:
    """Move numbers that are in other files of the folder into the network; return these files' digests."""
    contents: dict[str, bytes] = {}
    used = 0
    for tensor in network.graph.initializer:
        if not (tensor.external_data or tensor.data_location):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in contents:
            contents[name] = _read_sidecar(file, name, file.stat().st_size + sum(map(len, contents.values())))
        try:
            start = int(entries.get("offset", 0))
            length = int(entries.get("length", len(contents[name]) - start))
        except ValueError as error:
            raise OnnxError(f"expected numbers in {name} at a known place; got {entries}. {EXPORT_AGAIN}") from error
        used += length
        if min(start, length) < 0 or start + length > len(contents[name]):
            raise OnnxError(f"expected {start + length} bytes in {name}; got {len(contents[name])}. Copy it again.")
        if used > sum(map(len, contents.values())):
            raise OnnxError(f"expected numbers that are used once; {name} has fewer. {EXPORT_AGAIN}")
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = contents[name][start : start + length]
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _read_sidecar(file: Path, name: str, before: int) -> bytes:
    """Read a file with numbers: a plain file beside the network."""
    sidecar = file.parent / name
    if not name or name != Path(name).name or "\\" in name or "\0" in name or name in (".", ".."):
        raise OnnxError(f"expected numbers in a file of the same folder; got {name!r}. {EXPORT_AGAIN}")
    if not name.startswith(file.stem):  # otherwise a network could name any file of the folder
        raise OnnxError(
            f"expected numbers in a file whose name begins with {file.stem!r}; got {name!r}. "
            "Give the network the name that it was exported with, or export it again."
        )
    if not sidecar.is_file():
        raise OnnxError(f"expected its numbers in {name}, in the same folder; there is no such file. Copy it there.")
    return _read(sidecar, before)


def _version(network: Any) -> int:
    return max((entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def _check_network(network: Any) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= (version := _version(network)) <= newest:
        raise OnnxError(
            f"expected operators of version {OLDEST} to {newest}; got {version}. Export it with opset_version=17."
        )
    stored = {tensor.name for tensor in network.graph.initializer}
    plain = [value for value in network.graph.input if value.name not in stored]  # old exporters list weights as inputs
    del network.graph.input[:]
    network.graph.input.extend(plain)
    if fault := network_fault(network, OPERATORS | FOLDED, inputs=len(plain)):
        raise OnnxError(f"expected a network of known layers; got {fault}. {EXPORT_AGAIN}")


def _runtime_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


@dataclass
class OnnxFileNetwork(OnnxNetwork):
    """A user's ONNX file, run by ONNX Runtime. Its pickle contains the file.

    Parameters
    ----------
    recipe, precision
        See :class:`features.networks.engines.OnnxNetwork`. The cache is not used.
    file : OnnxFile
    """

    file: OnnxFile = field(kw_only=True, repr=False)
    _contents: dict[Shape | None, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def content(self, shape: Shape | None) -> bytes:
        """Return the content of the ONNX file for images of a shape."""
        if shape not in self._contents:
            self._contents[shape] = self.file.network(shape)[0] if shape else b""
        return self._contents[shape]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_contents": {}}


def open_onnx_file(name: str, options: OnnxOptions, sizes: Sequence[Size]) -> OnnxFileNetwork:
    """Open a backbone that is an ONNX file, and check it for these sizes; see :meth:`OnnxFile.network`.

    Parameters
    ----------
    name : str
        :data:`ONNX_PREFIX` and a path.
    options : OnnxOptions
    sizes : sequence of int or None
        None: patches are not resized, so that size is checked later.
    """
    file = read_onnx_file(name.removeprefix(ONNX_PREFIX), options)
    known = [size for size in sizes if size] or [file.side]
    network = OnnxFileNetwork(file.recipe((known[0], known[0])), file=file)
    for shape in network.shapes(sizes):
        network.content(shape)
    return network
