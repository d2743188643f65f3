"""The fine-tuned network: settings, the part that is trained, its inputs, stored files and predictions."""

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
from histoblend.features.networks.engines import GPU_BATCH, KERAS_BATCH, Engine, KerasNetwork, OnnxNetwork, StoredOnnx
from histoblend.features.networks.onnx_export import export_model
from histoblend.features.networks.recipe import Recipe, dtype_policy
from histoblend.features.networks.stored import StoredKeras
from histoblend.features.networks.views import SYMMETRIES, resize, symmetries
from histoblend.models.augment import jitter_stains, normalise_stains
from histoblend.models.surgery import cut_network, fold_norms, unfold_norms

if TYPE_CHECKING:
    import keras

DESCRIPTION = "cnn.json"
KERAS_FILE, ONNX_FILE = "network.keras", "network.onnx"

#: Increased whenever an earlier version could misread a stored network.
FORMAT = 3


@dataclass(frozen=True)
class CnnSettings:
    """How a network is fine-tuned.

    Attributes
    ----------
    backbone, weights : str
        As for :class:`features.networks.recipe.Recipe`.
    size : int
        Side that patches are resized to, px; 0 does not resize.
    trained : {"auto", "top", "all"}
        Layers trained besides the head. "top": those after the last inner feature map, except depthwise kernels.
        "all": every layer. "auto": "all" on a GPU, otherwise "top".
    batch_norm : {"frozen", "trained"}
        Whether batch norms keep the statistics of the pretraining.
    epochs : int
        Maximum number of epochs; 0 trains the head only.
    patience : int
        Training stops after this many epochs without a better AUC on the validation slides.
    batch : int
        Patches per training step.
    learning_rate : float
        Learning rate after the warm-up; it then decays along a cosine to 1 % of this.
    weight_decay, label_smoothing : float
    stain : {"jitter", "none", "macenko"}
        "jitter": alter stains at random in training. "macenko": normalise stains in training and prediction.
    jitter : float
        Strength for :func:`models.augment.jitter_stains`.
    balanced : bool
        Give both classes the same total weight.
    average : bool
        Average the initial weights and those after each epoch.
    d4 : bool
        Average each prediction over the 8 symmetries of the square.
    precision : {"auto", "float32", "bfloat16"}
    seed : int
    seeds : int
        Number of networks to train, with seeds from ``seed`` on; their weights are averaged.
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
        """Height and width of the network's input for square patches of side ``patch``."""
        return (self.size or patch,) * 2


def pretrained(settings: CnnSettings, shape: Shape) -> keras.Model:
    """Load the backbone without its classifier, for images of a given height and width."""
    any_size = find_backbone(settings.backbone).any_size
    return load_backbone(settings.backbone, weights=settings.weights, shape=None if any_size else shape)


class TrainablePart:
    """The part of a backbone that is fine-tuned, and its conversion back into a whole network.

    Parameters
    ----------
    settings : CnnSettings
        ``trained`` is "top" or "all".
    shape : tuple of int
        Height and width of the images.
    precision : {"float32", "bfloat16"}
        Precision of multiplications in training; weights stay float32.

    Attributes
    ----------
    lower : keras.Model or None
        The frozen layers below the cut. None if all layers are trained or the network cannot be cut.
    input_shape : tuple of int
        Input shape of the trained part: a feature map, or an image of 0..255.
    width : int
        Number of channels pooled for the head.
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
        self._trained = self._trainable_copy()
        self._pretrained = self._trained.get_weights()

    def restore(self) -> None:
        """Reset the trained part to its pretrained weights."""
        self._trained.set_weights(self._pretrained)

    def _trainable_copy(self) -> keras.Model:
        """The layers to train; frozen batch norms are folded into convolutions."""
        if self.settings.batch_norm == "frozen":
            return fold_norms(self._upper, freeze_depthwise=self.lower is not None, shape=self.input_shape)
        return self._upper

    def pooling(self) -> keras.Model:
        """The trained part followed by global average pooling; output (n, width)."""
        keras = load_keras()
        pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
        return keras.Model(self._trained.input, pooled(self._trained.output))

    def model(self, mean: np.ndarray, scale: np.ndarray) -> keras.Model:
        """The trained part with a head on its pooled, standardised channels; output: log-odds (n, 1).

        Parameters
        ----------
        mean, scale : ndarray of shape (width,)
            Mean and scale that standardise each pooled channel.
        """
        keras = load_keras()
        pooled = self.pooling()
        standard = keras.layers.Normalization(mean=mean.tolist(), variance=(scale**2).tolist(), dtype="float32")
        log_odds = keras.layers.Dense(1, dtype="float32", name="log_odds")
        return keras.Model(pooled.input, log_odds(standard(pooled.output)))

    def whole(self, values: list[np.ndarray], mean: np.ndarray, scale: np.ndarray) -> keras.Model:
        """Build the whole network with trained weights, in float32 and from standard Keras layers only.

        Parameters
        ----------
        values : list of ndarray
            Weights of the network from :meth:`model` after training.
        mean, scale : ndarray of shape (width,)

        Returns
        -------
        keras.Model
            Images (n, height, width, 3) float32 of 0..255 to log-odds (n, 1).
        """
        keras = load_keras()
        plain = TrainablePart(self.settings, self.shape)
        plain.model(mean, scale).set_weights(values)
        if plain._trained is not plain._upper:
            unfold_norms(plain._trained, plain._upper)
        body = plain._body
        pooled = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")(body.output)
        network = keras.Model(body.input, keras.layers.Dense(1, dtype="float32", name="log_odds")(pooled), name="cnn")
        # The head absorbs the standardisation, so other programs have one layer less to support.
        kernel = values[-2].astype(np.float64) / scale[:, None]
        network.layers[-1].set_weights([kernel, values[-1] - mean @ kernel])
        return network


@dataclass(frozen=True)
class PatchTransform:
    """Turns patches into inputs of the trained part: alters stains, resizes, turns, and applies the frozen layers.

    Attributes
    ----------
    size, stain, jitter, seed
        As in :class:`CnnSettings`.
    network : OnnxNetwork, KerasNetwork or None
        The frozen layers.
    turn : int or None
        One of the 8 symmetries (0 to 7), without stain jitter. None augments: a random symmetry and stain jitter.
    slot : int
        Number of the random variant; used if ``turn`` is None.
    """

    size: int
    stain: str
    jitter: float
    seed: int
    network: OnnxNetwork | KerasNetwork | None
    turn: int | None = 0
    slot: int = 0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Turn (n, height, width, 3) uint8 into (n, values), float16: a feature map or levels 0..255 per patch.

        A row depends on its own patch only, not on the rest of the batch.
        """
        step = self.network.batch if self.network else KERAS_BATCH
        rows = [self._transform(patches[start : start + step]) for start in range(0, len(patches), step)]
        return np.concatenate(rows)

    def _transform(self, patches: np.ndarray) -> np.ndarray:
        patches = np.ascontiguousarray(patches)
        if self.stain == "macenko":
            patches = normalise_stains(patches)
        turns = [self.turn] * len(patches)
        if self.turn is None:
            # The checksum acts as a random number that does not depend on the batch. Each slot gives another symmetry.
            turns = [(zlib.crc32(patch.tobytes()) + self.slot) % SYMMETRIES for patch in patches]
            if self.stain == "jitter":
                patches = jitter_stains(patches, self.jitter, view=self.slot, seed=self.seed)
        patches = resize(patches, self.size or None)
        turned = np.stack([turn_patch(patch, turn) for patch, turn in zip(patches, turns, strict=True)])
        values = turned if self.network is None else self.network(turned)
        return values.reshape(len(values), -1).astype(np.float16)


def turn_patch(patch: np.ndarray, turn: int | None) -> np.ndarray:
    """Apply one of the 8 symmetries to a square image (height, width, channels), numbered as by :func:`symmetries`."""
    mirrored = patch[:, ::-1] if (turn or 0) >= 4 else patch
    return np.rot90(mirrored, (turn or 0) % 4)


def lower_network(trainable: TrainablePart, engine: Engine, folder: Path) -> OnnxNetwork | KerasNetwork | None:
    """Return the frozen layers as a network of the engine; its file is written into ``folder``, which must exist."""
    if trainable.lower is None:
        return None
    return _store(trainable.lower, trainable.settings.recipe, trainable.shape, engine, folder / "lower")


def _store(model: keras.Model, recipe: Recipe, shape: Shape, engine: Engine, path: Path) -> StoredOnnx | StoredKeras:
    key = None if find_backbone(recipe.backbone).any_size else shape
    if engine.name == "onnx":
        target = path.with_suffix(".onnx")
        export_model(model, shape, str(target))
        return StoredOnnx(recipe, contents={key: target.read_bytes()})
    target = path.with_suffix(".keras")
    model.save(target)
    return StoredKeras(recipe, "float32", GPU_BATCH if engine.gpu else KERAS_BATCH, {key: target.read_bytes()})


def with_channels(network: keras.Model) -> keras.Model:
    """Add the pooled channels to a fine-tuned network's output: images to (n, 1 + channels), log-odds first."""
    keras = load_keras()
    return keras.Model(network.input, keras.layers.Concatenate()([network.output, network.layers[-1].input]))


def column_names(channels: int) -> list[str]:
    """Names of the columns of :class:`CnnCompute`: log-odds, and the channels of the pooled last feature map."""
    return ["cnn_log-odds_all_whole", *(f"cnn_pooled_channel-{number}_whole" for number in range(channels))]


@dataclass
class _StoredWithChannels(StoredKeras):
    """A fine-tuned network run by Keras that also returns its pooled channels."""

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
    symmetries : int
        Number of the 8 symmetries that are averaged, in the order of :func:`features.networks.views.symmetries`.
    channels : int
    """

    network: OnnxNetwork | KerasNetwork
    size: int
    stain: str
    symmetries: int
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
        """Predict. A patch gets the same values in any batch: bit for bit by ONNX Runtime, to 1e-6 by Keras.

        Parameters
        ----------
        patches : ndarray of shape (n, height, width, 3), dtype uint8
            RGB, square. Not modified.
        plain : bool
            Predict log-odds for the unturned patch only, which is faster when only the channels matter.

        Returns
        -------
        ndarray of shape (n, 1 + channels), dtype float32
            Log-odds of tumour in the centre, averaged over the symmetries, and channels of the pooled last feature map
            of the unturned patch.

        Raises
        ------
        ValueError
            The patches have another shape or dtype.
        """
        if patches.ndim != 4 or patches.shape[3] != 3 or patches.shape[1] != patches.shape[2] or patches.dtype != "u1":
            raise ValueError(
                f"patches must be uint8 RGB of shape (n, side, side, 3); got {patches.dtype} {patches.shape}."
            )
        views = 1 if plain else self.symmetries
        step = max(1, self.network.batch // views)
        values = np.empty((len(patches), self.width), np.float32)
        for start in range(0, len(patches), step):
            batch = self.prepare(np.asarray(patches[start : start + step]))
            turned = np.concatenate(list(symmetries(batch))[:views])
            outputs = self.network(turned).reshape(views, len(batch), self.width)
            values[start : start + len(batch), 0] = outputs[..., 0].mean(axis=0)
            values[start : start + len(batch), 1:] = outputs[0, :, 1:]
        return values

    def prepare(self, patches: np.ndarray) -> np.ndarray:
        """Patches as the network takes them, before they are turned."""
        return resize(normalise_stains(patches) if self.stain == "macenko" else patches, self.size or None)


def store_cnn(network: keras.Model, settings: CnnSettings, shape: Shape, engine: Engine, folder: Path) -> CnnCompute:
    """Write a fine-tuned network into ``folder`` and open it for prediction.

    Parameters
    ----------
    network : keras.Model
        From :meth:`TrainablePart.whole`.
    settings : CnnSettings
    shape : tuple of int
    engine : Engine
        "onnx" writes an ONNX file beside the Keras file, and predicts with it.
    folder : Path
        Created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.save(folder / KERAS_FILE)
    if engine.name == "onnx":
        export_model(with_channels(network), shape, str(folder / ONNX_FILE))
    # A path to weights on the training machine is private and not needed: the network's file contains them.
    public = replace(settings, weights=settings.weights if settings.weights in ("imagenet", "random") else "")
    description = {
        "format": FORMAT,
        "engine": engine.name,
        "batch": GPU_BATCH if engine.gpu else KERAS_BATCH,
        "shape": list(shape),
        "channels": int(network.layers[-1].input.shape[-1]),
        "symmetries": SYMMETRIES if settings.d4 else 1,
        "settings": asdict(public),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")
    return open_cnn(folder)


def open_cnn(folder: Path) -> CnnCompute:
    """Open a network that :func:`store_cnn` wrote; raises InputError as :func:`cnn_from` does."""
    try:
        paths = {name: folder / name for name in (DESCRIPTION, KERAS_FILE, ONNX_FILE)}
        content = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    except OSError as error:
        raise InputError(f"{folder}: expected the folder of a fine-tuned network; got: {error.strerror}.") from error
    return cnn_from(content, str(folder))


def cnn_from(content: Mapping[str, bytes], source: str) -> CnnCompute:
    """Open a network from the files that :func:`store_cnn` wrote.

    Parameters
    ----------
    content : mapping from str to bytes
        Files by name.
    source : str
        Path of the files, for messages.

    Raises
    ------
    InputError
        A file is missing or damaged, or was written by another version.
    """
    try:
        description = json.loads(content[DESCRIPTION])
        if description["format"] != FORMAT:
            raise InputError(f"{source}: expected format {FORMAT}; got {description['format']!r}. Make it again.")
        settings = CnnSettings(**description["settings"])
        height, width = description["shape"]
        channels, views = int(description["channels"]), int(description["symmetries"])
        key = None if find_backbone(settings.backbone).any_size else (int(height), int(width))
        recipe = settings.recipe
        network: OnnxNetwork | KerasNetwork
        if description["engine"] == "onnx":
            network = StoredOnnx(recipe, contents={key: content[ONNX_FILE]})
        else:
            network = _StoredWithChannels(recipe, "float32", int(description["batch"]), {key: content[KERAS_FILE]})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: expected a fine-tuned network with {DESCRIPTION}; got: {error!r}.") from error
    return CnnCompute(network, settings.size, settings.stain, views, channels)
