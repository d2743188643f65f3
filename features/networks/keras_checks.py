"""Check Keras' files from other people before Keras or HDF5 load them: weights, and networks of listed layers."""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Iterator
from typing import IO, Any

from histoblend.data.errors import AWAY, InputError
from histoblend.data.storage.expansion import check_expansion, read_json, read_zip
from histoblend.features.networks.onnx_checks import MAX_GROWTH, SIDES

#: Files of a ``.keras`` archive. Layers with other files, such as vocabularies, are not supported.
MEMBERS = ("config.json", "metadata.json", "model.weights.h5")
CONFIG, WEIGHTS = MEMBERS[0], MEMBERS[2]

# Classes of the networks in the table of backbones, by module. None of them reads files, and none takes a function but
# an activation. Keras would also accept its other classes, and public functions of its modules.
_LAYERS = (
    "Activation Add Average AveragePooling2D BatchNormalization Concatenate Conv2D Cropping1D Cropping2D Dense "
    "DepthwiseConv2D Dropout EinsumDense Flatten GlobalAveragePooling1D GlobalAveragePooling2D GlobalMaxPooling2D "
    "InputLayer LayerNormalization MaxPooling2D Multiply Normalization ReLU Rescaling Reshape SeparableConv2D "
    "Softmax ZeroPadding1D ZeroPadding2D"
)
_INITIALIZERS = (
    "Constant GlorotNormal GlorotUniform HeNormal HeUniform Ones RandomNormal TruncatedNormal VarianceScaling Zeros"
)
CLASSES: dict[str | None, frozenset[str]] = {
    "keras.layers": frozenset(_LAYERS.split()),
    "keras.initializers": frozenset(_INITIALIZERS.split()),
    "keras": frozenset(("DTypePolicy", "Functional", "Sequential")),
    "keras.src.models.functional": frozenset(("Functional",)),
    "keras.src.applications.convnext": frozenset(("LayerScale",)),
    "keras.src.applications.inception_resnet_v2": frozenset(("CustomScaleLayer",)),
    "keras.src.ops.core": frozenset(("Cast",)),
    "keras.src.ops.math": frozenset(("Erf",)),
    "keras.src.ops.numpy": frozenset(
        ("Add", "Matmul", "Multiply", "Reshape", "Split", "Subtract", "Take", "Transpose")
    ),
    None: frozenset(("__keras_tensor__",)),
}

_ACTIVATIONS = (
    "elu gelu hard_sigmoid hard_silu hard_swish leaky_relu linear mish relu relu6 selu sigmoid silu softmax softplus "
    "swish tanh"
)
ACTIVATIONS = frozenset(_ACTIVATIONS.split())

#: Filters of HDF5 itself: deflate, shuffle and checksum. For others, HDF5 would search for a library to load.
_FILTERS = (1, 2, 3)


def check_keras(name: str, content: bytes) -> None:
    """Check a ``.keras`` archive: listed layers and activations, and weights inside. This does not rely on Keras.

    Raises
    ------
    InputError
        The archive is damaged, expands too far, has other files, layers or functions, or refers to other files.
    """
    members = read_zip(name, content)
    unknown = sorted(set(members) - set(MEMBERS))
    if unknown or not {CONFIG, WEIGHTS} <= set(members):
        raise InputError(f"{name}: expected only {', '.join(MEMBERS)}; got {', '.join(unknown) or 'too few'}. {AWAY}")
    config = read_json(f"{name}/{CONFIG}", members[CONFIG])
    for entry in objects(config, "class_name", "registered_name"):
        kind, module, registered = entry.get("class_name"), entry.get("module"), entry.get("registered_name")
        # Keras registers its own classes by their plain names, and others as "package>name".
        known = isinstance(module, str | None) and isinstance(kind, str) and kind in CLASSES.get(module, ())
        if not known or registered not in (None, kind):
            own_name = f" ({registered})" if registered not in (None, kind) else ""
            raise InputError(f"{name}: expected known layers of Keras; got {module}.{kind}{own_name}. {AWAY}")
    for entry in objects(config, "activation", "recurrent_activation"):
        for key in ("activation", "recurrent_activation"):
            function = entry.get(key)
            if function is not None and not (isinstance(function, str) and function in ACTIVATIONS):
                raise InputError(f"{name}: expected a known activation; got {str(function)[:80]}. {AWAY}")
    check_hdf5(f"{name}/{WEIGHTS}", io.BytesIO(members[WEIGHTS]), len(members[WEIGHTS]))


def objects(value: Any, *marks: str) -> Iterator[dict[str, Any]]:
    """Yield every object of parsed JSON that has one of these keys."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if not one.keys().isdisjoint(marks):
                yield one
            stack += one.values()
        elif isinstance(one, list):
            stack += one


def check_hdf5(name: str, file: IO[bytes], size: int) -> int:
    """Check an HDF5 file of ``size`` bytes: numbers, all inside, once, and not far larger than the file.

    Returns
    -------
    int
        Count of numbers in its arrays.

    Raises
    ------
    InputError
        It is damaged, refers to other files or twice to the same part, or expands too far.
    """
    import h5py

    try:
        root = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{name}: expected an HDF5 file; got: {error}. {AWAY}") from error
    with root:
        numbers = expanded = 0
        for part, fault in _hdf5_parts(root):
            if fault:
                raise InputError(f"{name}: expected numbers inside the file, once; {part.name} {fault}. {AWAY}")
            arrays = [part.attrs.get_id(key) for key in part.attrs]
            expanded += sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
            if isinstance(part, h5py.Dataset):
                numbers += part.size
                expanded += max(part.size, math.prod(part.chunks or ())) * part.dtype.itemsize
            check_expansion(name, expanded, size)
    return numbers


def _hdf5_parts(root: Any) -> Iterator[tuple[Any, str]]:
    """Yield each group and dataset of an HDF5 file, and what is wrong with it."""
    import h5py

    pending, seen = [root], set()
    while pending:
        part = pending.pop()
        place = h5py.h5o.get_info(part.id).addr
        if place in seen:
            yield part, "is linked twice"
        attributes = [part.attrs.get_id(name) for name in part.attrs]
        if any(attribute.dtype.hasobject and attribute.shape for attribute in attributes):
            yield part, "has attributes of texts of any length"
        seen.add(place)
        if isinstance(part, h5py.Group):
            yield part, ""
            for name in part:
                if not isinstance(part.get(name, getlink=True), h5py.HardLink):
                    yield part, f"has a link to another place, {name}"
                else:
                    pending.append(part[name])
        elif not isinstance(part, h5py.Dataset):
            yield part, "is neither a group nor an array"
        else:
            layout = part.id.get_create_plist()
            filters = [layout.get_filter(index)[0] for index in range(layout.get_nfilters())]
            fault = "is stored in another file" if part.external or part.is_virtual else ""
            fault = fault or ("" if part.dtype.kind in "fiub" else f"holds {part.dtype}")
            yield part, fault or ("" if set(filters) <= set(_FILTERS) else "is packed by a filter of others")


def check_size(name: str, content: bytes) -> None:
    """Check that a network of a checked ``.keras`` archive needs the stored weights only, and values of bounded size.

    Keras builds it without allocating anything.

    Raises
    ------
    InputError
        Layers have more weights than the archive, or compute more than a network may, or do not fit together.
    """
    from histoblend.features.networks.backend import load_keras

    keras = load_keras()
    from keras.src.backend.common import global_state

    members = read_zip(name, content)
    config = json.loads(members[CONFIG])
    for entry in objects(config, "class_name"):
        if entry["class_name"] == "InputLayer":
            shape = entry["config"]["batch_shape"]
            entry["config"]["batch_shape"] = [None, *(SIDES[0] if side is None else side for side in shape[1:])]
    try:
        with keras.StatelessScope(initialize_variables=False):
            model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"{name}: expected layers that fit together; got: {reason}. {AWAY}") from error
    finally:  # the variables wait for their first values; there is no public way to forget them
        global_state.set_global_attribute("uninitialized_variables", [])
    given = sum(math.prod(images.shape[1:]) for images in model.inputs)
    held = check_hdf5(name, io.BytesIO(members[WEIGHTS]), len(members[WEIGHTS]))
    needed = sum(math.prod(variable.shape) for variable in model.variables)
    computed = sum(math.prod(value.shape[1:]) for value in _values(model))
    if needed > held or computed > MAX_GROWTH * given:
        raise InputError(
            f"{name}: expected layers with {held} weights that compute at most {MAX_GROWTH * given} numbers per image; "
            f"got {needed} and {computed}. {AWAY}"
        )


def _values(model: Any) -> Iterator[Any]:
    """Yield the symbolic outputs of all layers, also of networks inside the network."""
    pending = [model]
    while pending:
        for layer in pending.pop().operations:
            if hasattr(layer, "operations"):
                pending.append(layer)
            for node in layer._inbound_nodes:
                yield from node.output_tensors
