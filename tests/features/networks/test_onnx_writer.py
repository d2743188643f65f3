"""Every layer that is written computes what Keras computes, at odd sizes; other layers are refused."""

import itertools

import numpy as np
import onnx
import pytest

from histoblend.features.networks.backend import load_keras, to_numpy
from histoblend.features.networks.onnx_checks import OPERATORS
from histoblend.features.networks.onnx_export import open_session
from histoblend.features.networks.onnx_writer import onnx_network

SHAPE = (21, 18, 3)


def convolutions(layers, ops, x):
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(scale=False, epsilon=1e-2)(x)
    x = layers.DepthwiseConv2D((3, 5), depth_multiplier=2, padding="valid", activation="relu")(x)
    x = layers.Conv2D(12, 2, groups=4, activation="silu")(x)
    x = layers.BatchNormalization(center=False)(x)
    return layers.SeparableConv2D(6, 3, padding="same")(x)


def pools(layers, ops, x):
    x = layers.ZeroPadding2D(((1, 2), (3, 0)))(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.Concatenate()([layers.AveragePooling2D(3, strides=1, padding="same")(x), x])
    x = layers.Cropping2D(((1, 0), (0, 2)))(x)
    x = layers.AveragePooling2D(2)(x)
    return layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])


def scales(layers, ops, x):
    x = layers.Rescaling([0.01, 0.02, 0.03], [-1.0, 0.5, 0.25])(ops.take(x, [2, 1, 0], axis=-1))
    x = layers.Rescaling(2.0, -0.5)(x)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[4.0, 1.0, 0.25])(x)
    return layers.ReLU()(x) * (1.0 / 6.0) + 3.0


def gates(layers, ops, x):
    x = layers.Conv2D(6, 3)(layers.Rescaling(1 / 255)(x))
    kept = layers.Conv2D(6, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    squeezed = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(x))
    x = layers.Multiply()([x, layers.ReLU(6.0)(squeezed), kept])
    return layers.Add()([layers.Activation("hard_silu")(x), layers.Dropout(0.5)(x)])


def norms(layers, ops, x):
    from keras.src.applications.convnext import LayerScale
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    keras = load_keras()
    x = keras.Sequential([layers.Conv2D(5, 4, strides=4), layers.LayerNormalization(epsilon=1e-6)])(x)
    y = layers.Dense(5)(layers.Activation("gelu")(layers.Dense(9)(x)))
    y = CustomScaleLayer(0.17)([x, LayerScale(0.3, 5)(y)])
    return layers.Dense(1)(layers.LayerNormalization()(layers.GlobalAveragePooling2D()(y)))


def tokens(layers, ops, x):
    x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 18, 63))
    x = layers.ZeroPadding1D((2, 1), data_format="channels_last")(x)
    x = layers.EinsumDense("btc,cd->btd", (21, 12), bias_axes="td")(x)
    x = layers.LayerNormalization()(x)
    first, second = ops.split(ops.transpose(ops.reshape(x, (-1, 21, 4, 3)), (0, 2, 1, 3)), 2, axis=1)
    seen = ops.matmul(layers.Softmax()(ops.matmul(first * 0.5, ops.transpose(second, (0, 1, 3, 2)))), second)
    x = ops.reshape(ops.transpose(seen, (0, 2, 1, 3)), (-1, 21, 6))
    mean = layers.GlobalAveragePooling1D(data_format="channels_last")(layers.Cropping1D((2, 1))(x))
    parts = [ops.reshape(part, (-1, 1, 1, 6)) for part in (mean, layers.Cropping1D((0, 20))(x))]
    return layers.Concatenate()(parts)


@pytest.mark.parametrize(
    ("build", "free"),
    [*itertools.product([convolutions, pools, scales, gates, norms], [False, True]), (tokens, False)],
)
def test_layers_compute_what_keras_computes(build, free):
    keras = load_keras()
    images = keras.Input((None, None, 3) if free else SHAPE, name="images")
    model = keras.Model(images, build(keras.layers, keras.ops, images))
    rng = np.random.default_rng(0)
    for weight in model.weights:  # statistics and shifts start as 0 and 1, which would hide them
        if weight.dtype == "float32":
            weight.assign(to_numpy(weight) + rng.uniform(0.1, 0.5, weight.shape).astype(np.float32))
    batch = rng.integers(0, 256, (2, *SHAPE)).astype(np.float32)
    content = onnx_network(model)
    expected = to_numpy(model(batch, training=False))
    values = open_session(content).run(None, {"images": batch})[0]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    assert {node.op_type for node in onnx.load_model_from_string(content).graph.node} <= OPERATORS


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("UpSampling2D", {}, r"the layer up\w+ \(UpSampling2D\) has no counterpart"),
        ("ReLU", {"negative_slope": 0.1}, "a slope or a threshold"),
        ("Activation", {"activation": "tanh"}, "the activation tanh"),
        ("EinsumDense", {"equation": "abcd,de->abce", "output_shape": (None, None, 2)}, "has no counterpart"),
        ("Conv2D", {"filters": 3, "kernel_size": 1, "data_format": "channels_first"}, "has no counterpart"),
    ],
)
def test_unknown_layers_are_refused(name, options, message):
    keras = load_keras()
    images = keras.Input(SHAPE)
    with pytest.raises(NotImplementedError, match=message):
        onnx_network(keras.Model(images, getattr(keras.layers, name)(**options)(images)))
