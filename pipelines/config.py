"""Configuration: one frozen, typed object with all settings."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from histoblend.data.sources.images import MIN_SIZE
from histoblend.models.heads.registry import HEADS

if TYPE_CHECKING:
    HeadName = str
else:
    HeadName = Literal[tuple(HEADS)]

#: Sets of columns that heads are fitted on. "families" means each handcrafted family as a separate set.
SetName = Literal[
    "colour", "families", "handcrafted", "embeddings", "both",
    "context", "in-slide", "embeddings-context", "both-context",
    "context-normalised", "embeddings-normalised", "both-normalised",
]  # fmt: skip

#: Of the stain-normalised sets, only the combined one is a default. Its two parts are optional.
DEFAULT_SETS = tuple(name for name in get_args(SetName) if name not in ("context-normalised", "embeddings-normalised"))

#: Most patches that a network learns from on a CPU, if cnn.patches is 0.
MOST_ON_CPU = 20_000

#: A path in which ``~`` means the home folder, as in a shell.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataCardConfig(_Section):
    """What the report says about the data set. It does not change results."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    source: str = Field("", description="report: where the patches come from")
    tissue: str = Field("", description="report: the tissue, such as lymph node sections")
    stain: str = Field("", description="report: the stain, such as H&E")
    um_per_pixel: str = Field("", description="report: size of a pixel, µm; empty for data.mpp, if set (folder)")
    label: str = Field("", description="report: what label 1 means, such as tumour in the centre")


class DataConfig(_Section):
    """The data set."""

    source: Literal["phantom", "kaggle", "pcam", "wilds", "folder"] = Field("phantom", description="kind of data set")
    path: UserPath = Field("", description="folder of the data set; not used for the phantom")
    size: int = Field(96, ge=MIN_SIZE, description="height and width of a patch, px")
    mpp: float = Field(
        0.972, ge=0, le=100, description="pixel size, µm per pixel; 0 if unknown (does not change the patches)"
    )
    missing: Literal["error", "skip"] = Field(
        "error", description="what to do with ids without an image and images without a label"
    )
    slide_map: UserPath = Field(
        "", description="CSV file with the slide of each patch; empty for the data set's default file"
    )
    centre_map: UserPath = Field(
        "", description="CSV file with the centre (hospital or scanner) of each slide or patch; empty if unknown"
    )
    resize: Literal["refuse", "resize", "crop"] = Field(
        "refuse", description="folder: what to do with images of another size"
    )
    positive: tuple[str, ...] = Field(
        (), description="folder: positive classes; empty to recognise names such as tumour"
    )
    strict: bool = Field(False, description="stop at a patch that cannot be read, instead of setting it aside")
    n: int = Field(2000, ge=20, description="phantom: number of patches")
    slides: int = Field(40, ge=2, description="phantom: number of slides")
    difficulty: float = Field(0.5, ge=0, le=1, description="phantom: 0 easy, 1 hard")
    confound: float = Field(
        0.0, ge=0, le=1, description="phantom: association of tumour and scanner; 0 none, 1 complete"
    )
    centres: bool = Field(False, description="phantom: name the scanner of each patch as its centre")
    faults: bool = Field(
        False, description="phantom: add duplicate, blank, blurred, pen-marked and mislabelled patches"
    )
    card: DataCardConfig = DataCardConfig()


class SplitConfig(_Section):
    """How slides are split."""

    test_share: float = Field(0.2, gt=0, lt=1, description="share of the slides that are held out (at least 4 slides)")
    test_centre: str = Field(
        "", coerce_numbers_to_str=True, description="centre that is held out as the test set; empty for a share of all"
    )
    folds: int = Field(5, ge=2, description="cross-validation folds of the other slides")
    groups: Literal["slide", "infer", "patch"] = Field(
        "slide",
        description="units of the split: slides; slides inferred by stain if none is known; or single patches (leaks)",
    )


class AuditConfig(_Section):
    """What to do with each kind of flagged patch; data/audit/flags.py explains the flags."""

    exact_duplicate: Literal["group", "drop", "keep"] = Field("group", description="patches with the same pixels")
    near_duplicate: Literal["group", "drop", "keep"] = Field(
        "group", description="the same image, rotated or slightly altered"
    )
    across_slides: Literal["group", "drop", "keep"] = Field(
        "group", description="duplicates on several slides: merge these slides, keep one slide's copies, or do nothing"
    )
    across_splits: Literal["drop", "keep"] = Field(
        "drop", description="training patches that also occur in the official test set"
    )
    contradictory: Literal["drop", "keep"] = Field("drop", description="the same pixels with both labels")
    near_contradictory: Literal["keep", "drop"] = Field("keep", description="near duplicates with both labels")
    blank: Literal["keep", "drop"] = Field("keep", description="empty glass")
    black: Literal["keep", "drop"] = Field("keep", description="outside the scanned area")
    blurred: Literal["keep", "drop"] = Field("keep", description="out of focus")
    saturated: Literal["keep", "drop"] = Field("keep", description="overexposed or clipped")
    pen: Literal["keep", "drop"] = Field("keep", description="pen ink, thick folds, slide edge")
    no_slide: Literal["group", "drop"] = Field(
        "group", description="patches missing from a slide map: one group, or drop"
    )


class FeaturesConfig(_Section):
    """Which handcrafted features are computed."""

    families: tuple[str, ...] = Field((), description="families of features/handcrafted/families.py; empty for all")
    shard: int = Field(256, ge=1, description="patches per shard (does not change results)")


class OnnxConfig(_Section):
    """How backbones that are ONNX files are used; see docs/onnx.md."""

    input: str = Field("", description="name of the file's input; empty for the only one")
    layout: Literal["auto", "NCHW", "NHWC"] = Field("auto", description="order of the dimensions of its input")
    scale: float = Field(255.0, gt=0, description="0..255 images are divided by this, before mean and std; or 1")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from red, green and blue")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="red, green and blue are divided by it")
    output: str = Field("", description="name of the file's output; empty for the only one")
    pooling: Literal["auto", "class", "mean", "class-mean", "max"] = Field(
        "auto", description="pooling of tokens (class, mean, class-mean) or of feature maps (mean, max; auto is mean)"
    )
    prefix: int = Field(1, ge=0, description="tokens before those of the patches: class token and registers")

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(value) <= 0:
            raise ValueError("must be above 0")
        return value


class EmbeddingsConfig(_Section):
    """Which pretrained network embeds the patches, and how."""

    backbone: tuple[str, ...] = Field(
        ("efficientnet-lite2",),
        min_length=1,
        description="pretrained network, see docs/backbones.md, or onnx:path/to/file.onnx; the embeddings of several "
        "networks are concatenated",
    )
    weights: UserPath = Field("imagenet", description="imagenet, random, or the path of a weights file")
    size: tuple[int, ...] = Field(
        (192,),
        min_length=1,
        description="patches are resized to this side, px; 0 for no resizing; several sizes are concatenated",
    )
    centre: int = Field(
        0, ge=0, description="also embed the centre of this side, px, resized to the same size; 0 for none"
    )
    pooling: Literal["avg", "max", "both"] = Field("avg", description="pooling over the network's feature maps")
    stages: int = Field(2, ge=1, description="number of feature maps that are pooled, counted from the last one")
    d4: bool = Field(False, description="average over the 8 symmetries of the square")
    onnx: OnnxConfig = OnnxConfig()
    engine: Literal["auto", "onnx", "keras"] = Field(
        "auto", description="library that runs the network; auto is keras on a GPU, otherwise onnx"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto", description="auto is bfloat16 for transformers on a GPU, else float32; int8 (onnx only) is calibrated"
    )
    shard: int = Field(256, ge=1, description="patches per shard (does not change results)")

    @field_validator("backbone", "size", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("size", "centre")
    @classmethod
    def _pixels(cls, value: Any) -> Any:
        sides = value if isinstance(value, tuple) else (value,)
        if len(set(sides)) < len(sides) or any(side != 0 and side < 16 for side in sides):
            raise ValueError("must be 0 or at least 16 pixels, each size once")
        return value


class HeadsConfig(_Section):
    """Which classifiers are fitted on which columns."""

    heads: tuple[HeadName, ...] = Field(tuple(HEADS), min_length=1, description="heads")
    features: tuple[SetName, ...] = Field(
        DEFAULT_SETS,
        min_length=1,
        description="sets of columns; families means each handcrafted family as a separate set. These sets need known "
        "slides: context (handcrafted columns, raw and relative to the slide), in-slide (relative only), "
        "embeddings-context (embeddings, raw and relative), both-context (both tables, raw and relative); and "
        "context-normalised, embeddings-normalised, both-normalised (the same for patches whose stains are normalised "
        "by slide)",
    )

    @field_validator("heads", "features")
    @classmethod
    def _no_duplicates(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("must not contain a name twice")
        return names


class CnnConfig(_Section):
    """How the network is fine-tuned."""

    enabled: bool = Field(True, description="whether `ensemble` fine-tunes a network")
    backbone: str = Field("efficientnet-lite2", description="pretrained network, see docs/backbones.md")
    weights: UserPath = Field("imagenet", description="imagenet, random, or the path of a weights file")
    size: int = Field(192, ge=0, description="patches are resized to this side, px; 0 for no resizing")
    trained: Literal["auto", "top", "all"] = Field(
        "auto", description="trained layers: all, or top (after the last inner feature map); auto is all on a GPU"
    )
    batch_norm: Literal["frozen", "trained"] = Field(
        "frozen", description="keep batch norms as pretrained, or train them"
    )
    epochs: int = Field(4, ge=0, description="most epochs; 0 fits the head only")
    seeds: int = Field(
        1, ge=1, le=10, description="number of networks to train; their weights are averaged; each takes the same time"
    )
    patience: int = Field(2, ge=1, description="epochs without a better AUC on validation slides before training stops")
    batch: int = Field(32, ge=1, description="patches per training step")
    learning_rate: float = Field(3e-5, gt=0, description="learning rate of AdamW after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing: how far labels move towards 0.5")
    stain: Literal["jitter", "none", "macenko"] = Field(
        "jitter", description="random stain jitter in training, none, or Macenko normalisation of all patches"
    )
    jitter: float = Field(0.1, ge=0, le=1, description="strength of the stain jitter")
    balanced: bool = Field(False, description="weight the classes equally")
    average: bool = Field(True, description="average the weights at the start and the end of every epoch")
    d4: bool = Field(True, description="average predictions over the 8 symmetries of the square")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="training precision; auto is bfloat16 on a GPU, otherwise float32"
    )
    folds: int = Field(0, ge=0, description="folds that get out-of-fold predictions; 0 for all; fewer save time")
    patches: int = Field(
        0, ge=0, description="most training patches used for training and prediction; 0: all on a GPU, otherwise 20,000"
    )
    cache_gb: float = Field(
        20.0, ge=0, description="most disk space for temporary feature maps, GB (does not change results)"
    )

    @field_validator("patches")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 20:
            raise ValueError("must be 0 or at least 20")
        return value

    def most_patches(self, count: int, *, gpu: bool) -> int:
        """Most training patches, of ``count``, that the network learns from."""
        return self.patches or (count if gpu else MOST_ON_CPU)


class EnsembleConfig(_Section):
    """How members are combined."""

    combiners: tuple[Literal["mean", "rank", "weights", "stack"], ...] = Field(
        ("mean", "rank", "weights", "stack"), min_length=1, description="combiners to choose from"
    )
    members: tuple[str, ...] = Field(
        (), description="models to combine, such as 'cnn'; empty to choose a few strong and diverse ones"
    )
    draws: int = Field(2000, ge=100, description="resamplings of slides for each interval of the ensemble's tables")


class FinalConfig(_Section):
    """How the models in the bundle are fitted, and how its fine-tuned network predicts."""

    refit: Literal["all", "train"] = Field(
        "all", description="patches that the bundle's models are fitted on: all labelled, or training slides as scored"
    )
    symmetries: Literal[1, 2, 4, 8] = Field(
        4, description="symmetries of a patch that the bundle's network averages, if cnn.d4; scores average all 8"
    )
    precision: Literal["auto", "float32", "int8"] = Field(
        "auto", description="precision of the bundle's network; auto is int8 if that hardly changes it (not on a GPU)"
    )


class LearningConfig(_Section):
    """Learning curves."""

    network: bool = Field(
        False,
        description="whether `generalise` and `ensemble` add a curve of the fine-tuned network, which takes several "
        "times as long as fine-tuning it",
    )


class ReportConfig(_Section):
    """Settings of the report."""

    draws: int = Field(2000, ge=100, description="resamplings of slides for each interval of the ladder")
    repeats: int = Field(3, ge=1, description="permutations per feature")


class TrackConfig(_Section):
    """Logging of finished runs. It does not change results."""

    kind: Literal["none", "mlflow"] = Field(
        "none", description="where finished runs are logged; mlflow needs an extra installation"
    )
    uri: str = Field("runs/mlflow", min_length=1, description="http(s) address of an MLflow server, or a folder")
    experiment: str = Field("histoblend", min_length=1, description="experiment that runs are logged under")


class EngineConfig(_Section):
    """How the work is computed. It does not change results, except for heads fitted on a distributed table."""

    workers: int = Field(-1, description="worker processes or threads; -1 for one per core, -2 for one fewer")
    scheduler: str = Field(
        "local",
        description="local (joblib on this machine), dask-local (a Dask cluster of processes on this machine), or the "
        "address of a Dask scheduler, such as tcp://host:8786",
    )
    store: str = Field(
        "",
        description="Dask: address of a folder that all workers can read and write, such as s3://bucket/folder; empty "
        "if workers can access the runs folder under the same path",
    )
    heads: Literal["auto", "whole", "spread"] = Field(
        "auto",
        description="Dask: whole fits each head on one worker, spread distributes the table over all workers; auto is "
        "spread for tables of more than 8 GB",
    )

    @field_validator("workers")
    @classmethod
    def _some_workers(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be a positive number, or -1 for one per core (-2 for one fewer)")
        return value

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        if value not in ("local", "dask-local") and not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+", value):
            raise ValueError("must be local, dask-local or an address such as tcp://host:8786")
        return value


class Config(_Section):
    """All settings of a run."""

    name: str = Field("phantom", description="name of the run and of its folder under runs/")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of all random numbers")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    audit: AuditConfig = AuditConfig()
    features: FeaturesConfig = FeaturesConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    heads: HeadsConfig = HeadsConfig()
    cnn: CnnConfig = CnnConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    final: FinalConfig = FinalConfig()
    learning: LearningConfig = LearningConfig()
    report: ReportConfig = ReportConfig()
    engine: EngineConfig = EngineConfig()
    track: TrackConfig = TrackConfig()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not name or name in {".", ".."} or name.startswith("-") or re.search(r"[\s/\\\0]", name):
            near = re.sub(r"[\s/\\\0\ud800-\udfff]+", "-", name).strip("-.") or "mine"
            raise ValueError(f"must be a folder name without slashes or spaces, such as RUN={near} (--run {near})")
        return name

    @field_validator("track", mode="before")
    @classmethod
    def _kind_only(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


def config_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of the configuration, dotted, and its description."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def shown_configuration(config: Config) -> dict[str, Any]:
    """The part of the configuration that a report shows: all settings that can change a result."""
    return config.model_dump(mode="json", exclude={"engine", "track"})


def describe(config: Config) -> Iterator[str]:
    """Yield one line per key: its value in the form of ``--set``, and its description."""
    for key, description in config_keys():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        shown = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        yield f"{key}={shown}  # {description}"
