"""A fine-tuned network: what of it is trained, what it is shown, and what predicts with it afterwards."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import find_backbone, load_backbone
from histoblend.features.networks.backend import Shape, load_keras
from histoblend.features.networks.engines import GPU_BATCH, KERAS_BATCH, Engine, KerasNetwork, OnnxNetwork
from histoblend.features.networks.onnx_export import export_model
from histoblend.features.networks.recipe import Recipe, dtype_policy
from histoblend.features.networks.stored import StoredKeras, StoredOnnx
from histoblend.features.networks.views import SYMMETRIES, resize, symmetries
from histoblend.models.augment import jitter_stains, normalise_stains
from histoblend.models.surgery import cut_network, fold_norms, unfold_norms

if TYPE_CHECKING:
    import keras

TRAINED = ("auto", "top", "all")
STAINS = ("jitter", "none", "macenko")
DESCRIPTION = "cnn.json"
KERAS_FILE, ONNX_FILE = "network.keras", "network.onnx"

#: Raised when a reader of an earlier version could misread a stored network.
FORMAT = 2


@dataclass(frozen=True)
class CnnSettings:
    """How a network is fine-tuned.

    Attributes
    ----------
    backbone, weights : str
        As for :class:`features.networks.recipe.Recipe`.
    size : int
        Side that patches are resized to, px; 0 leaves them as they are.
    trained : {"auto", "top", "all"}
        What learns besides the head: "top", what comes after the last inner feature map, with depthwise kernels as they
        are; or "all". "auto" is "all" on a GPU and "top" elsewhere.
    batch_norm : {"frozen", "trained"}
        Whether batch norms keep the statistics of the pretraining.
    epochs : int
        At most; 0 leaves it at the head.
    patience : int
        Epochs without a better AUC on the validation slides after which training stops.
    batch : int
    learning_rate : float
        After the warm-up; it falls to a hundredth along a cosine.
    weight_decay, label_smoothing : float
    stain : {"jitter", "none", "macenko"}
        Stains altered at random in training, left alone, or normalised in training and prediction.
    jitter : float
        Strength for :func:`models.augment.jitter_stains`.
    balanced : bool
        Weigh classes so that both count the same.
    average : bool
        Average the weights at the start and at the end of each epoch.
    d4 : bool
        Average a prediction over the 8 symmetries of the square.
    precision : {"auto", "float32", "bfloat16"}
    seed : int
    seeds : int
        Networks that are trained, with seeds from ``seed`` on, and whose weights are averaged.
    """

    backbone: str = "efficientnet-lite2"
    weights: str = "imagenet"
    size: int = 192
    trained: str = "auto"
    batch_norm: str = "frozen"
    epochs: int = 4
    patience: int = 2
    batch: int = 32
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    stain: str = "jitter"
    jitter: float = 0.1
    balanced: bool = False
    average: bool = True
    d4: bool = True
    precision: str = "auto"
    seed: int = 0
    seeds: int = 1

    @property
    def recipe(self) -> Recipe:
        """The backbone and its weights."""
        return Recipe(self.backbone, self.weights)

    def shape(self, patch: int) -> Shape:
        """Height and width of what the network sees of a square patch of a side."""
        return (self.size or patch,) * 2


def pretrained(settings: CnnSettings, shape: Shape) -> keras.Model:
    """Load the backbone without its classifier, for pictures of a shape."""
    free = find_backbone(settings.backbone).any_size
    return load_backbone(settings.backbone, weights=settings.weights, shape=None if free else shape)


class TrainablePart:
    """A backbone that is being fine-tuned: the part that learns, and the way back to the whole network.

    Parameters
    ----------
    settings : CnnSettings
        With ``trained`` decided.
    shape : tuple of int
        Height and width of the pictures.
    precision : {"float32", "bfloat16"}
        Of the products while it learns; weights stay float32.

    Attributes
    ----------
    lower : keras.Model or None
        What is not trained, up to the cut; None where everything is, or nothing can be cut off.
    input_shape : tuple of int
        Shape of what the trained part is given: a feature map, or a picture of 0..255.
    width : int
        Channels that are pooled for the head.
    """

    def __init__(self, settings: CnnSettings, shape: Shape, precision: str = "float32") -> None:
        keras = load_keras()
        self.settings, self.shape = settings, shape
        with dtype_policy(keras, precision):
            self._body = pretrained(settings, shape)
        stages = find_backbone(settings.backbone).stages
        halves = cut_network(self._body, stages[-1].layer) if settings.trained == "top" and stages else None
        self.lower = halves.lower if halves else None
        self._upper = halves.upper if halves else self._body
        self.width = int(self._body.output.shape[-1])
        self.input_shape: tuple[int, ...] = (*shape, 3)
        if self.lower is not None:
            self.input_shape = tuple(map(int, self.lower.compute_output_shape((1, *shape, 3))[1:]))
        self._twin = self._copy()
        self._pretrained = self._twin.get_weights()

    def restore(self) -> None:
        """Give the part that learns its pretrained values again."""
        self._twin.set_weights(self._pretrained)

    def _copy(self) -> keras.Model:
        """The part that learns, as it is trained."""
        if self.settings.batch_norm == "frozen":
            return fold_norms(self._upper, freeze_depthwise=self.lower is not None, shape=self.input_shape)
        return self._upper

    def pooling(self) -> keras.Model:
        """The pretrained part that learns, to its pooled last feature map (n, width)."""
        keras = load_keras()
        pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
        return keras.Model(self._twin.input, pooled(self._twin.output))

    def model(self, mean: np.ndarray, scale: np.ndarray) -> keras.Model:
        """The part that learns, with a head on its pooled, standardised channels, to log-odds (n, 1).

        Parameters
        ----------
        mean, scale : ndarray of shape (width,)
            Taken from, and divided into, each pooled channel.
        """
        keras = load_keras()
        pooled = self.pooling()
        standard = keras.layers.Normalization(mean=mean.tolist(), variance=(scale**2).tolist(), dtype="float32")
        log_odds = keras.layers.Dense(1, dtype="float32", name="log_odds")
        return keras.Model(pooled.input, log_odds(standard(pooled.output)))

    def whole(self, values: list[np.ndarray], mean: np.ndarray, scale: np.ndarray) -> keras.Model:
        """The whole network, in float32 and with ordinary layers only, with trained values in it.

        Parameters
        ----------
        values : list of ndarray
            Weights of :meth:`model`'s network after training.
        mean, scale : ndarray of shape (width,)

        Returns
        -------
        keras.Model
            Pictures (n, height, width, 3) float32 of 0..255 to log-odds (n, 1).
        """
        keras = load_keras()
        plain = TrainablePart(self.settings, self.shape)
        plain.model(mean, scale).set_weights(values)
        if plain._twin is not plain._upper:
            unfold_norms(plain._twin, plain._upper)
        body = plain._body
        pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")(body.output)
        network = keras.Model(body.input, keras.layers.Dense(1, dtype="float32", name="log_odds")(pooled), name="cnn")
        # The standardisation goes into the head: the same sum, and one layer less that another program must know.
        kernel = values[-2].astype(np.float64) / scale[:, None]
        network.layers[-1].set_weights([kernel, values[-1] - mean @ kernel])
        return network


@dataclass(frozen=True)
class PatchTransform:
    """Turns patches into what the trained part is given: turned, resized, stains altered, passed through the rest.

    Attributes
    ----------
    size, stain, jitter, seed
        As in :class:`CnnSettings`.
    network : OnnxNetwork, KerasNetwork or None
        The part that is not trained.
    turn : int or None
        Which of the 8 symmetries a patch is turned by, nothing else being altered; None draws one for each patch.
    slot : int
        Number of the random variant where one is drawn.
    """

    size: int
    stain: str
    jitter: float
    seed: int
    network: OnnxNetwork | KerasNetwork | None
    turn: int | None = 0
    slot: int = 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Turn (n, height, width, 3) uint8 into (n, values): float16 feature maps or levels 0..255, a row a patch.

        A row follows from its own patch alone, whatever stands beside it.
        """
        step = self.network.batch if self.network else KERAS_BATCH
        rows = [self._some(patches[start : start + step]) for start in range(0, len(patches), step)]
        return np.concatenate(rows)

    def _some(self, patches: np.ndarray) -> np.ndarray:
        patches = np.ascontiguousarray(patches)
        if self.stain == "macenko":
            patches = normalise_stains(patches)
        turns = [self.turn] * len(patches)
        if self.turn is None:
            # As good as random, and the same for a patch wherever it stands; each slot turns it by another eighth.
            turns = [(zlib.crc32(patch.tobytes()) + self.slot) % SYMMETRIES for patch in patches]
            if self.stain == "jitter":
                patches = jitter_stains(patches, self.jitter, view=self.slot, seed=self.seed)
        patches = resize(patches, self.size or None)
        turned = np.stack([turn_patch(patch, turn) for patch, turn in zip(patches, turns, strict=True)])
        values = turned if self.network is None else self.network(turned)
        return values.reshape(len(values), -1).astype(np.float16)


def turn_patch(patch: np.ndarray, turn: int | None) -> np.ndarray:
    """One of the 8 symmetries of a square picture (height, width, channels), numbered as by :func:`symmetries`."""
    mirrored = patch[:, ::-1] if (turn or 0) >= 4 else patch
    return np.rot90(mirrored, (turn or 0) % 4)


def lower_network(trainable: TrainablePart, engine: Engine, folder: Path) -> OnnxNetwork | KerasNetwork | None:
    """What runs the part that is not trained; its file is written into ``folder``, which exists."""
    if trainable.lower is None:
        return None
    return _stored(trainable.lower, trainable.settings.recipe, trainable.shape, engine, folder / "lower")


def _stored(model: keras.Model, recipe: Recipe, shape: Shape, engine: Engine, path: Path) -> StoredOnnx | StoredKeras:
    key = None if find_backbone(recipe.backbone).any_size else shape
    if engine.name == "onnx":
        target = path.with_suffix(".onnx")
        export_model(model, shape, str(target))
        return StoredOnnx(recipe, Path(), {key: target.read_bytes()})
    target = path.with_suffix(".keras")
    model.save(target)
    return StoredKeras(recipe, "float32", GPU_BATCH if engine.gpu else KERAS_BATCH, {key: target.read_bytes()})


def with_channels(network: keras.Model) -> keras.Model:
    """A fine-tuned network that also tells its pooled channels: pictures to (n, 1 + channels), log-odds first."""
    keras = load_keras()
    return keras.Model(network.input, keras.layers.Concatenate()([network.output, network.layers[-1].input]))


def column_names(channels: int) -> list[str]:
    """Names of what :class:`CnnCompute` returns: log-odds, and the channels of the pooled last feature map."""
    return ["cnn_log-odds_all_whole", *(f"cnn_pooled_channel-{number}_whole" for number in range(channels))]


@dataclass
class _StoredKeras(StoredKeras):
    """A fine-tuned network run by Keras, its channels told as well."""

    def build(self, shape: Shape | None) -> keras.Model:
        return with_channels(super().build(shape))


@dataclass(frozen=True)
class CnnCompute:
    """Predicts with a fine-tuned network: (n, height, width, 3) uint8 RGB to (n, 1 + channels) float32.

    Attributes
    ----------
    network : StoredOnnx or StoredKeras
        From :func:`with_channels`.
    size : int
    stain : str
    d4 : bool
    channels : int
    """

    network: OnnxNetwork | KerasNetwork
    size: int
    stain: str
    d4: bool
    channels: int

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return column_names(self.channels)

    @property
    def width(self) -> int:
        """Number of columns."""
        return 1 + self.channels

    def __call__(self, patches: np.ndarray, *, plain: bool = False) -> np.ndarray:
        """Predict; the number of a patch is the same in any batch, by ONNX Runtime bit for bit, by Keras to 1e-6.

        Parameters
        ----------
        patches : ndarray of shape (n, height, width, 3), dtype uint8
            RGB, square. Not modified.
        plain : bool
            Log-odds of the patch as it lies only: an eighth of the work where channels alone are of interest.

        Returns
        -------
        ndarray of shape (n, 1 + channels), dtype float32
            Log-odds of tumour in the centre, averaged over the symmetries; channels of the pooled last feature map, of
            the patch as it lies.

        Raises
        ------
        ValueError
            When the patches have another shape or dtype.
        """
        if patches.ndim != 4 or patches.shape[3] != 3 or patches.shape[1] != patches.shape[2] or patches.dtype != "u1":
            raise ValueError(
                f"patches must be uint8 RGB of shape (n, side, side, 3); got {patches.dtype} {patches.shape}."
            )
        views = SYMMETRIES if self.d4 and not plain else 1
        step = max(1, self.network.batch // views)
        values = np.empty((len(patches), self.width), np.float32)
        for start in range(0, len(patches), step):
            some = np.asarray(patches[start : start + step])
            some = resize(normalise_stains(some) if self.stain == "macenko" else some, self.size or None)
            several = np.concatenate(list(symmetries(some))[:views])
            found = self.network(several).reshape(views, len(some), self.width)
            values[start : start + len(some), 0] = found[..., 0].mean(axis=0)
            values[start : start + len(some), 1:] = found[0, :, 1:]
        return values


def store_cnn(network: keras.Model, settings: CnnSettings, shape: Shape, engine: Engine, folder: Path) -> CnnCompute:
    """Write a fine-tuned network into ``folder``, and return what predicts with it.

    Parameters
    ----------
    network : keras.Model
        From :meth:`TrainablePart.whole`.
    settings : CnnSettings
    shape : tuple of int
    engine : Engine
        "onnx" writes an ONNX file beside the Keras one, and uses it.
    folder : Path
        Made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder / KERAS_FILE)
    if engine.name == "onnx":
        export_model(with_channels(network), shape, str(folder / ONNX_FILE))
    # Where weights lay on the machine that trained is nobody's business, and they are in the network's file.
    public = replace(settings, weights=settings.weights if settings.weights in ("imagenet", "random") else "")
    description = {
        "format": FORMAT,
        "engine": engine.name,
        "batch": GPU_BATCH if engine.gpu else KERAS_BATCH,
        "shape": list(shape),
        "channels": int(network.layers[-1].input.shape[-1]),
        "settings": asdict(public),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
    return open_cnn(folder)


def open_cnn(folder: Path) -> CnnCompute:
    """Open a network that :func:`store_cnn` wrote.

    Raises
    ------
    InputError
        A file is missing or damaged, or was written by a newer version.
    """
    try:
        there = {name: folder / name for name in (DESCRIPTION, KERAS_FILE, ONNX_FILE)}
        content = {name: path.read_bytes() for name, path in there.items() if path.is_file()}
    except OSError as error:
        raise InputError(f"{folder}: expected the folder of a fine-tuned network; got: {error.strerror}.") from error
    return cnn_from(content, str(folder))


def cnn_from(content: Mapping[str, bytes], place: str) -> CnnCompute:
    """Open a network from the files that :func:`store_cnn` wrote.

    Parameters
    ----------
    content : mapping from str to bytes
        Files by name.
    place : str
        Where they came from, for messages.

    Raises
    ------
    InputError
        A file is missing or damaged, or was written by a newer version.
    """
    try:
        description = json.loads(content[DESCRIPTION])
        if description["format"] != FORMAT:
            raise InputError(f"{place}: expected format {FORMAT}; got {description['format']!r}. Use a newer version.")
        settings = CnnSettings(**description["settings"])
        height, width = description["shape"]
        channels = int(description["channels"])
        key = None if find_backbone(settings.backbone).any_size else (int(height), int(width))
        recipe = settings.recipe
        network: OnnxNetwork | KerasNetwork
        if description["engine"] == "onnx":
            network = StoredOnnx(recipe, Path(), {key: content[ONNX_FILE]})
        else:
            network = _StoredKeras(recipe, "float32", int(description["batch"]), {key: content[KERAS_FILE]})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{place}: expected a fine-tuned network with {DESCRIPTION}; got: {error!r}.") from error
    return CnnCompute(network, settings.size, settings.stain, settings.d4, channels)
