"""Configuration: TOML files and ``--set key=value`` into one frozen, typed object."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from histoblend.data.errors import InputError
from histoblend.data.sources.images import LEAST_SIZE
from histoblend.data.storage.arrays import names_in
from histoblend.models.heads.registry import HEADS
from histoblend.pipelines.runtime.provenance import ROOT

if TYPE_CHECKING:
    HeadName = str
else:
    HeadName = Literal[tuple(HEADS)]

#: Sets of columns that heads are fitted on; "families" stands for every handcrafted family alone.
SetName = Literal[
    "colour", "families", "handcrafted", "embeddings", "both",
    "context", "in-slide", "embeddings-context", "both-context",
    "context-normalised", "embeddings-normalised", "both-normalised",
]  # fmt: skip

#: Those of stain-normalised patches tell most together; its two parts are fitted where they are asked for.
DEFAULT_SETS = tuple(name for name in get_args(SetName) if name not in ("context-normalised", "embeddings-normalised"))

#: A path in which ``~`` is the home folder, as in a shell.
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Where patches come from."""

    source: Literal["phantom", "kaggle", "pcam", "folder"] = Field("phantom", description="kind of data set")
    path: UserPath = Field("", description="folder of the data set; the phantom needs none")
    size: int = Field(96, ge=LEAST_SIZE, description="height and width of a patch, px")
    mpp: float = Field(
        0.972, ge=0, le=100, description="side of a patch's pixel, µm; 0 where it is unknown (changes no patch)"
    )
    missing: Literal["error", "skip"] = Field("error", description="ids without image and images without label")
    slide_map: UserPath = Field(
        "", description="CSV file with the slide of each patch; empty for the layout's usual one"
    )
    resize: Literal["refuse", "resize", "crop"] = Field("refuse", description="folder: images of another size")
    positive: tuple[str, ...] = Field(
        (), description="folder: positive classes; empty where names such as tumour say it"
    )
    strict: bool = Field(False, description="a patch that cannot be read is fatal instead of set aside")
    n: int = Field(2000, ge=20, description="phantom: number of patches")
    slides: int = Field(40, ge=2, description="phantom: number of slides")
    difficulty: float = Field(0.5, ge=0, le=1, description="phantom: 0 easy, 1 hard")
    confound: float = Field(0.0, ge=0, le=1, description="phantom: how far tumour and scanner go together")
    faults: bool = Field(
        False, description="phantom: plant duplicates, blank, blurred, pen-marked, mislabelled patches"
    )


class SplitConfig(_Section):
    """How slides are divided."""

    test_share: float = Field(0.2, gt=0, lt=1, description="share of the slides held out (at least 4 are)")
    folds: int = Field(5, ge=2, description="folds of the other slides")
    groups: Literal["slide", "infer", "patch"] = Field(
        "slide",
        description="what is held out whole: slides; where none is known, clusters by stain; or single patches (leaks)",
    )


class AuditConfig(_Section):
    """What follows from what is odd about a patch; data/audit/flags.py says what each flag means."""

    exact_duplicate: Literal["group", "drop", "keep"] = Field("group", description="patches with the same pixels")
    near_duplicate: Literal["group", "drop", "keep"] = Field("group", description="the same picture, turned or altered")
    across_slides: Literal["group", "drop", "keep"] = Field(
        "group", description="duplicates in several slides: unite these slides, keep one slide's copies, or let them be"
    )
    across_splits: Literal["drop", "keep"] = Field(
        "drop", description="training patches that the official test set holds"
    )
    contradictory: Literal["drop", "keep"] = Field("drop", description="the same pixels under both labels")
    near_contradictory: Literal["keep", "drop"] = Field("keep", description="near duplicates under both labels")
    blank: Literal["keep", "drop"] = Field("keep", description="bare glass")
    black: Literal["keep", "drop"] = Field("keep", description="beyond the scanned area")
    blurred: Literal["keep", "drop"] = Field("keep", description="out of focus")
    saturated: Literal["keep", "drop"] = Field("keep", description="overexposed or cut off")
    pen: Literal["keep", "drop"] = Field("keep", description="pen ink, thick folds, the frame")
    no_slide: Literal["group", "drop"] = Field("group", description="left out by a slide map: one group, or dropped")


class FeaturesConfig(_Section):
    """Which handcrafted features are computed."""

    families: tuple[str, ...] = Field((), description="families of features/handcrafted/families.py; empty for all")
    shard: int = Field(256, ge=1, description="patches a shard (changes no value)")


class EmbeddingsConfig(_Section):
    """Which pretrained network embeds the patches, and how."""

    backbone: tuple[str, ...] = Field(
        ("efficientnet-lite2",),
        min_length=1,
        description="row of features/networks/backbones.py (docs/backbones.md lists them); several stand side by side",
    )
    weights: UserPath = Field("imagenet", description="imagenet, random, or the path of a file of weights")
    size: tuple[int, ...] = Field(
        (192,),
        min_length=1,
        description="side to which patches are resized, px, 0 for none; several stand side by side",
    )
    centre: int = Field(
        0, ge=0, description="side of the centre that is embedded as well, resized alike, px; 0 for none"
    )
    pooling: Literal["avg", "max", "both"] = Field("avg", description="over the network's feature maps")
    stages: int = Field(2, ge=1, description="feature maps that are pooled, from the last one backwards")
    d4: bool = Field(False, description="average over the 8 symmetries of the square")
    engine: Literal["auto", "onnx", "keras"] = Field(
        "auto", description="what runs the network; auto is keras on a GPU and onnx elsewhere"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the keras engine; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    shard: int = Field(256, ge=1, description="patches a shard (changes no value)")

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
        description="sets of columns: families is every handcrafted family alone. Only where slides are known: context "
        "(handcrafted, raw and relative to the slide), in-slide (relative only), embeddings-context and both-context "
        "(embeddings, or both tables, raw and relative); context-normalised, embeddings-normalised and "
        "both-normalised: the same three of patches whose stains are normalised by slide",
    )

    @field_validator("heads", "features")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("every name may stand once")
        return names


class CnnConfig(_Section):
    """How the network is fine-tuned."""

    enabled: bool = Field(True, description="whether `ensemble` fine-tunes a network")
    backbone: str = Field("efficientnet-lite2", description="row of features/networks/backbones.py")
    weights: UserPath = Field("imagenet", description="imagenet, random, or the path of a file of weights")
    size: int = Field(192, ge=0, description="side to which patches are resized, px, 0 for none")
    trained: Literal["auto", "top", "all"] = Field(
        "auto", description="what learns: top is what follows the last inner feature map; auto is all on a GPU"
    )
    batch_norm: Literal["frozen", "trained"] = Field("frozen", description="batch norms as pretrained, or learning")
    epochs: int = Field(4, ge=0, description="at most; 0 fits the head alone")
    seeds: int = Field(
        1, ge=1, le=10, description="networks that are trained, and whose weights are averaged; each takes as long"
    )
    patience: int = Field(2, ge=1, description="epochs without a better AUC on validation slides before it stops")
    batch: int = Field(32, ge=1, description="patches a step")
    learning_rate: float = Field(3e-5, gt=0, description="of AdamW, after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="how far labels are drawn towards one half")
    stain: Literal["jitter", "none", "macenko"] = Field(
        "jitter", description="stains altered at random in training, left alone, or normalised throughout"
    )
    jitter: float = Field(0.1, ge=0, le=1, description="strength of the random alteration of stains")
    balanced: bool = Field(False, description="weigh classes so that both count the same")
    average: bool = Field(True, description="average the weights at the start and the end of every epoch")
    d4: bool = Field(True, description="average predictions over the 8 symmetries of the square")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of training; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    folds: int = Field(0, ge=0, description="folds that get out-of-fold predictions, 0 for all; fewer save time")
    patches: int = Field(20_000, ge=20, description="most training patches that it learns from and predicts")
    cache_gb: float = Field(20.0, ge=0, description="disk that feature maps may take meanwhile, GB (changes no value)")


class EnsembleConfig(_Section):
    """How members are combined."""

    combiners: tuple[Literal["mean", "rank", "weights", "stack"], ...] = Field(
        ("mean", "rank", "weights", "stack"), min_length=1, description="ways to combine that are chosen from"
    )
    members: tuple[str, ...] = Field(
        (), description="models to combine, such as 'cnn'; empty for a few strong and different ones"
    )
    draws: int = Field(2000, ge=100, description="resamplings of slides behind each interval of the ensemble's tables")


class FinalConfig(_Section):
    """What the models that a run gives away have learned from."""

    refit: Literal["all", "train"] = Field(
        "all",
        description="labelled patches that the bundle's models learn from once everything is judged: all, or those of "
        "training slides, which the numbers belong to",
    )


class ReportConfig(_Section):
    """How figures are made."""

    draws: int = Field(2000, ge=100, description="resamplings of slides behind each interval of the ladder")
    repeats: int = Field(3, ge=1, description="permutations a feature")


class TrackConfig(_Section):
    """Where a finished run is logged as well; nothing here changes a result."""

    kind: Literal["none", "mlflow"] = Field("none", description="what logs a finished run; mlflow is an extra")
    uri: str = Field("runs/mlflow", min_length=1, description="http(s) address of an MLflow server, or a folder")
    experiment: str = Field("histoblend", min_length=1, description="experiment that runs are logged under")


class EngineConfig(_Section):
    """How work is run. Nothing here changes a result, but for heads that are fitted on a spread table."""

    workers: int = Field(-1, description="worker processes or threads; -1 for one per core, -2 for one fewer")
    scheduler: str = Field(
        "local",
        description="local (joblib on this machine), dask-local (a Dask cluster of processes on this machine), or the "
        "address of a Dask scheduler, such as tcp://host:8786",
    )
    store: str = Field(
        "",
        description="Dask: address of a folder that every worker reads and writes, such as s3://bucket/folder; empty "
        "where workers see the folder of the runs under the same path",
    )
    heads: Literal["auto", "whole", "spread"] = Field(
        "auto",
        description="Dask: each fit on a worker that holds its whole table, or on a table spread over all workers' "
        "memories; auto spreads tables of more than 8 GB",
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
    """Everything that a run depends on."""

    name: str = Field("phantom", description="name of the run: its folder under runs/")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    audit: AuditConfig = AuditConfig()
    features: FeaturesConfig = FeaturesConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    heads: HeadsConfig = HeadsConfig()
    cnn: CnnConfig = CnnConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    final: FinalConfig = FinalConfig()
    report: ReportConfig = ReportConfig()
    engine: EngineConfig = EngineConfig()
    track: TrackConfig = TrackConfig()

    @field_validator("track", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


def load_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply ``key=value`` settings on top.

    Parameters
    ----------
    path : Path
    settings : sequence of str
        ``section.key=value``; the value is read as TOML and, failing that, as text.

    Returns
    -------
    Config

    Raises
    ------
    InputError
        The file is missing or no TOML, a key is unknown (the nearest known one is named), or a value does not fit.
    """
    shipped = {Path(name).stem: ROOT / "configs" / name for name in names_in(ROOT / "configs", ".toml")}
    if not path.is_file():
        path = shipped.get(str(path), path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a TOML file; it does not exist. Shipped: {', '.join(shipped)}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file; got: {error}.") from error
    for setting in settings:
        _apply(values, setting)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from None
    _check_name(config.name)
    return config


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set must look like section.key=value; got {setting!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {setting}: {section!r} is a value, not a section.")
    values[last] = value


def _explain(error: ValidationError) -> str:
    """One sentence for the first thing that is wrong."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [known for known, _ in config_keys()]
        same = [name for name in known if name.endswith(f".{key}")]  # the section was left out
        near = same or difflib.get_close_matches(key, known, 1, 0.5)
        near = near or difflib.get_close_matches(
            key.rpartition(".")[2], [name.rpartition(".")[2] for name in known], 1, 0.5
        )
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys: {', '.join(known)}."
        return f"unknown key {key!r}; {hint}"
    return f"{key}: {first['msg']}; got {first['input']!r}."


def config_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of the configuration, dotted, and what it is."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""


def shown_configuration(config: Config) -> dict[str, Any]:
    """The part of the configuration that a report shows: all that a result may depend on."""
    return config.model_dump(mode="json", exclude={"engine", "track"})


def describe(config: Config) -> Iterator[str]:
    """A line a key: its value as ``--set`` takes it, and what it is."""
    for key, sentence in config_keys():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        shown = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        yield f"{key}={shown}  # {sentence}"


def _check_name(name: str) -> None:
    if not name or name in {".", ".."} or any(sign in name for sign in "/\\\0") or name.startswith("-"):
        raise InputError(f"name must be a folder name without slashes; got {name!r}. Choose another RUN=… or --run.")
