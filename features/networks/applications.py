"""Networks of ``keras.applications`` with one input contract, filled from checked weights files.

Keras' builders differ in their input: some scale 0..255 themselves, others need ``preprocess_input``, which overwrites
the caller's array. Here the preprocessing of the builders is switched off, and the row's contract is added in front of
the network, in the same graph.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.expansion import read_zip
from histoblend.features.networks.backend import Preprocessing, Shape, load_keras, preprocess
from histoblend.features.networks.keras_checks import WEIGHTS, check_hdf5
from histoblend.features.networks.weights import CheckpointError

if TYPE_CHECKING:
    import keras

#: URL of the folder where Keras publishes its weights files.
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"

#: Standard deviation of the red, green and blue of ImageNet, scaled to 0..1.
IMAGENET_SPREAD = (0.229, 0.224, 0.225)

#: Accepted extensions of weights files. Both formats contain only arrays, and no code from them is run.
KERAS_SUFFIXES = (".h5", ".keras")


def application(
    contract: Preprocessing, shape: Shape | None, head: bool, *, builder: str, **options: Any
) -> keras.Model:
    """Build a network of ``keras.applications`` without its classifier, on 0..255 RGB.

    Parameters
    ----------
    contract : Preprocessing
    shape : tuple of int
        Height and width of the images. It must be known, because several networks choose their padding by it.
    head : bool
        Must be false.
    builder : str
        Name in ``keras.applications``.
    **options
        Further arguments of the builder.

    Returns
    -------
    keras.Model
        With untrained weights; :func:`features.networks.backbones.load_backbone` describes inputs and outputs.

    Raises
    ------
    ValueError
        If the shape is missing or a head is requested.
    """
    if head or shape is None:
        raise ValueError(f"{builder} must be built for one shape and without a head; got shape {shape}, head {head}.")
    keras = load_keras()
    images = keras.Input((*shape, 3), name="images")
    # An input tensor instead of a nested model keeps the order of the layers, which weights files depend on.
    network = getattr(keras.applications, builder)(
        include_top=False,
        weights=None,
        input_tensor=preprocess(images, contract),
        input_shape=(*shape, 3),
        **options,
    )
    return keras.Model(images, network.output, name=builder)


def load_application(model: keras.Model, path: Path, sha256: str | None = None) -> None:
    """Load Keras weights from a file into a network: ``.h5``, ``.weights.h5`` or ``.keras``.

    Parameters
    ----------
    model : keras.Model
    path : Path
    sha256 : str, optional
        Expected hexadecimal digest of the file.

    Raises
    ------
    CheckpointError
        If the file is missing, has another digest, refers to other files, or belongs to another network.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a weights file; there is none.")
    digest = file_sha256(path)
    if sha256 is not None and digest != sha256:
        raise CheckpointError(f"{path}: sha256 must be {sha256}; got {digest}. The file is damaged or another version.")
    try:
        _check_contained(path)
        with _lower_case(path) as readable, warnings.catch_warnings():
            # Keras warns about every missing group of arrays, and raises an error if one of them is needed.
            warnings.simplefilter("ignore")
            model.load_weights(str(readable))
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except Exception as error:  # h5py and Keras raise many kinds of errors for files that do not fit
        reason = textwrap.shorten(str(error), 200, placeholder=" …").rstrip(".:") or type(error).__name__
        raise CheckpointError(
            f"{path}: expected the weights of {model.name} without its classifier; got: {reason}. "
            "Give the file that was saved from this network, or the backbone that the file belongs to."
        ) from error


def load_first_efficientnet(model: keras.Model, path: Path, sha256: str | None = None) -> None:
    """Load weights into a first-generation EfficientNet, whose input is normalised by arrays in the file.

    Keras' pretrained file has the standard deviation of each channel in place of the variance. Keras' builder corrects
    this with an extra layer, but only if it downloads the weights itself. This function squares the values instead.
    """
    load_application(model, path, sha256)
    keras = load_keras()
    # by class: Keras adds numbers to the layer names of later networks
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    variance = next(weight for weight in layer.weights if weight.name == "variance")
    if np.allclose(keras.ops.convert_to_numpy(keras.ops.ravel(variance)), IMAGENET_SPREAD, atol=1e-3):
        variance.assign(keras.ops.square(variance))
        layer.finalize_state()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lower_case(path: Path) -> Iterator[Path]:
    """Yield the path, or that of a copy if the extension is not in lower case: Keras accepts only lower case."""
    extension = next((end for end in (".weights.h5", *KERAS_SUFFIXES) if path.name.lower().endswith(end)), "")
    if path.name.endswith(extension):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder, path.name.lower())))


def _check_contained(path: Path) -> None:
    """Check the HDF5 file with the weights: only the file given by the user may be read, and it must not expand."""
    if path.suffix.lower() == ".keras":
        weights = read_zip(str(path), path.read_bytes()).get(WEIGHTS, b"")
        check_hdf5(str(path), io.BytesIO(weights), len(weights))
    else:
        with path.open("rb") as file:
            check_hdf5(str(path), file, path.stat().st_size)
