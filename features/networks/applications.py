"""The networks of ``keras.applications``, behind one input contract, filled from weights files that are checked first.

Keras' own builders differ in what they want: some scale 0..255 themselves, others leave it to a ``preprocess_input``
that overwrites the caller's array. Here whatever a builder has of its own is switched off, and the row's contract
stands in front, in the same graph.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from histoblend.features.networks.backend import Preprocessing, Shape, load_keras, preprocess
from histoblend.features.networks.weights import CheckpointError

if TYPE_CHECKING:
    import keras

#: Where Keras publishes its weights files.
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"

#: Standard deviation of ImageNet's red, green and blue, scaled to 0..1.
IMAGENET_SPREAD = (0.229, 0.224, 0.225)

#: What files of weights may be called; both hold arrays, and nothing in them is run.
KERAS_SUFFIXES = (".h5", ".keras")


def application(
    contract: Preprocessing, shape: Shape | None, head: bool, *, builder: str, **options: Any
) -> keras.Model:
    """Build a network of ``keras.applications`` without its classifier, on 0..255 RGB.

    Parameters
    ----------
    contract : Preprocessing
    shape : tuple of int
        Height and width of the pictures. Several of these networks pad by it, so it must be known.
    head : bool
        Must be false.
    builder : str
        Name in ``keras.applications``.
    **options
        What the builder takes besides.

    Returns
    -------
    keras.Model
        With untrained weights; :func:`features.networks.backbones.load_backbone` describes inputs and outputs.

    Raises
    ------
    ValueError
        When the shape is missing or a head is wanted.
    """
    if head or shape is None:
        raise ValueError(f"{builder} must be built for one shape and without a head; got shape {shape}, head {head}.")
    keras = load_keras()
    images = keras.Input((*shape, 3), name="images")
    # An input tensor of ours, and not a model in a model: the layers keep their order, which weights files go by.
    network = getattr(keras.applications, builder)(
        include_top=False,
        weights=None,
        input_tensor=preprocess(images, contract),
        input_shape=(*shape, 3),
        **options,
    )
    return keras.Model(images, network.output, name=builder)


def load_application(model: keras.Model, path: Path, sha256: str | None = None) -> None:
    """Fill a network from a file of Keras weights: ``.h5``, ``.weights.h5`` or ``.keras``.

    Parameters
    ----------
    model : keras.Model
    path : Path
    sha256 : str, optional
        Hexadecimal digest that the file must have.

    Raises
    ------
    CheckpointError
        When the file is missing, is not the pinned one, points outside of itself, or belongs to another network.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a file of weights; there is none.")
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise CheckpointError(f"{path}: sha256 must be {sha256}; got {found}. The file is damaged or another version.")
    try:
        _check_contained(path)
        with _lower_case(path) as readable, warnings.catch_warnings():
            # Keras warns of every group of arrays that is not in the file, and raises if one of them is needed.
            warnings.simplefilter("ignore")
            model.load_weights(str(readable))
    except CheckpointError:
        raise
    except Exception as error:  # h5py and Keras raise whatever comes up with files that do not fit
        reason = textwrap.shorten(str(error), 200, placeholder=" …").rstrip(".:") or type(error).__name__
        raise CheckpointError(
            f"{path}: expected the weights of {model.name} without its classifier; got: {reason}. "
            "Name the file that was saved from this network, or the backbone that the file belongs to."
        ) from error


def load_first_efficientnet(model: keras.Model, path: Path, sha256: str | None = None) -> None:
    """Fill an EfficientNet of the first generation, whose input is normalised by arrays in the file.

    Keras' pretrained file holds the spread of each channel where the layer expects the variance. Keras makes up for it
    with one layer more, which its builder adds only when it downloads the weights itself; here such a file's variance
    is put right instead.
    """
    load_application(model, path, sha256)
    keras = load_keras()
    # by its kind: Keras numbers the names of a process' later networks
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    variance = next(one for one in layer.weights if one.name == "variance")
    if np.allclose(keras.ops.convert_to_numpy(keras.ops.ravel(variance)), IMAGENET_SPREAD, atol=1e-3):
        variance.assign(keras.ops.square(variance))
        layer.finalize_state()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lower_case(path: Path) -> Iterator[Path]:
    """The file, copied where its ending is not in lower case: Keras knows no others."""
    ending = next((end for end in (".weights.h5", *KERAS_SUFFIXES) if path.name.lower().endswith(end)), "")
    if path.name.endswith(ending):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder, path.name.lower())))


def _check_contained(path: Path) -> None:
    """Refuse an HDF5 file that asks for other files: opening it must not read what the user never named."""
    if path.suffix.lower() != ".keras":
        with path.open("rb") as file:
            _check_links(path, file)
        return
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
        _check_links(path, file)


def _check_links(path: Path, file: IO[bytes]) -> None:
    import h5py

    def visit(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise CheckpointError(f"{path}: {group.name}/{name} is a link; refused: weights hold their arrays.")
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item)
            elif item.external or item.is_virtual:
                raise CheckpointError(f"{path}: {item.name} lies in another file; refused: weights hold their arrays.")

    with h5py.File(file, "r") as content:
        visit(content)
