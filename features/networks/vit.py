"""Vision transformers in Keras, as pathology foundation models use them: plain ViT and DINOv2.

Only standard layers are used, so that all backends, the export to ONNX and the checks of bundles apply. Class token,
registers and positions are the bias of the first layer: patches are padded with rows of zeros for the tokens before
them. LayerScale is multiplied into the kernels before it when weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from histoblend.features.networks.backend import Preprocessing, Shape, load_keras, preprocess

if TYPE_CHECKING:
    import keras

#: What a network outputs: its class token, the mean of its patch tokens, or the first followed by the second.
OUTPUTS = ("class", "mean", "both")


@dataclass(frozen=True)
class VitForm:
    """Architecture of a vision transformer.

    Attributes
    ----------
    patch : int
        Side of a patch in pixels.
    width, depth, heads : int
        Numbers per token, blocks, attention heads.
    grid : int
        Patches along each side that the published positions are for.
    hidden : int
        Numbers per token inside the MLP, after the gate if there is one.
    registers : int
        Learned tokens without meaning, between class token and patches (Darcet et al. 2024).
    swiglu : bool
        Whether the MLP is gated by SiLU (Shazeer 2020), with gate and value packed in one kernel. Otherwise it is GELU.
    scaled : bool
        Whether each block scales its two branches per channel (LayerScale, Touvron et al. 2021).
    biased : bool
        Whether query, key and value have a bias.
    antialias : bool
        Whether positions are shrunk with an antialiasing filter, as in the source.
    epsilon : float
        Of the layer normalisation.
    output : {"class", "mean", "both"}
    """

    patch: int
    width: int
    depth: int
    heads: int
    grid: int
    hidden: int
    registers: int = 0
    swiglu: bool = False
    scaled: bool = False
    biased: bool = True
    antialias: bool = True
    epsilon: float = 1e-6
    output: str = "class"

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return 1 + self.registers

    @property
    def size(self) -> int:
        """Number of values of the output."""
        return self.width * (2 if self.output == "both" else 1)

    @property
    def parameters(self) -> int:
        """Number of published weights that the network uses."""
        width, mlp = self.width, self.hidden * (3 if self.swiglu else 2)
        biases = width * (3 * self.biased + 2) + (mlp - self.hidden) + (2 * width if self.scaled else 0)
        block = 4 * width**2 + mlp * width + biases + 4 * width
        return self.depth * block + width * (3 * self.patch**2 + 1 + 2 + 1 + self.prefix + self.grid**2)


def vit(contract: Preprocessing, shape: Shape | None, head: bool, *, form: VitForm) -> keras.Model:
    """Build a vision transformer on 0..255 RGB.

    Parameters
    ----------
    contract : Preprocessing
    shape : tuple of int
        Height and width of the images, multiples of the patch. They must be known: positions are made for them.
    head : bool
        Must be false.
    form : VitForm

    Returns
    -------
    keras.Model
        With untrained weights. The output of shape (n, 1, 1, form.size) is a feature map of one pixel, so that pooling
        returns it unchanged.

    Raises
    ------
    ValueError
        If the shape is missing or not a multiple of the patch, or a head is requested.

    References
    ----------
    Dosovitskiy et al. (2021), ICLR, arXiv:2010.11929. Oquab et al. (2024), DINOv2, TMLR, arXiv:2304.07193. Darcet et
    al. (2024), ICLR, arXiv:2309.16588.
    """
    if head or shape is None or any(side % form.patch or side < form.patch for side in shape):
        raise ValueError(
            f"a vision transformer must be built for one shape of multiples of {form.patch}, without a head; got shape "
            f"{shape}, head {head}."
        )
    keras = load_keras()
    layers, ops, patch = keras.layers, keras.ops, form.patch
    rows, columns = (side // patch for side in shape)
    images = keras.Input((*shape, 3), name="images")
    x = ops.reshape(preprocess(images, contract), (-1, rows, patch, columns, patch, 3))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, 3 * patch**2))
    x = layers.ZeroPadding1D((form.prefix, 0), data_format="channels_last")(x)
    tokens = form.prefix + rows * columns
    x = _project(keras, x, form.width, "tokens", bias="td")
    for number in range(form.depth):
        x = _add_block(keras, x, f"block{number}", form)
    x = layers.LayerNormalization(epsilon=form.epsilon, name="norm")(x)
    parts = []
    if form.output in ("class", "both"):
        parts.append(ops.reshape(layers.Cropping1D((0, tokens - 1))(x), (-1, 1, 1, form.width)))
    if form.output in ("mean", "both"):
        pool = layers.GlobalAveragePooling1D(data_format="channels_last", dtype="float32")
        parts.append(ops.reshape(pool(layers.Cropping1D((form.prefix, 0))(x)), (-1, 1, 1, form.width)))
    output = layers.Concatenate(dtype="float32")(parts) if len(parts) > 1 else parts[0]
    return keras.Model(images, output, name="vit")


def _add_block(keras: ModuleType, x: Any, name: str, form: VitForm) -> Any:
    """Add self-attention and an MLP, each normalised before and added to its input."""
    layers = keras.layers
    y = layers.LayerNormalization(epsilon=form.epsilon, name=f"{name}_norm1")(x)
    x = layers.Add(name=f"{name}_seen")([x, _attend(keras, y, name, form)])
    y = layers.LayerNormalization(epsilon=form.epsilon, name=f"{name}_norm2")(x)
    if form.swiglu:
        gate = layers.Activation("silu")(_project(keras, y, form.hidden, f"{name}_gate"))
        y = layers.Multiply()([gate, _project(keras, y, form.hidden, f"{name}_value")])
    else:
        y = layers.Activation("gelu")(_project(keras, y, form.hidden, f"{name}_fc1"))
    return layers.Add(name=f"{name}_add")([x, _project(keras, y, form.width, f"{name}_fc2")])


def _attend(keras: ModuleType, x: Any, name: str, form: VitForm) -> Any:
    """Add attention of every token to every token, with several heads."""
    layers, ops = keras.layers, keras.ops
    tokens, size = x.shape[1], form.width // form.heads
    x = _project(keras, x, 3 * form.width, f"{name}_qkv", bias="d" if form.biased else None)
    x = ops.transpose(ops.reshape(x, (-1, tokens, 3 * form.heads, size)), (0, 2, 1, 3))
    query, key, value = ops.split(x, 3, axis=1)
    scores = ops.matmul(ops.multiply(query, size**-0.5), ops.transpose(key, (0, 1, 3, 2)))
    x = ops.transpose(ops.matmul(layers.Softmax()(scores), value), (0, 2, 1, 3))
    return _project(keras, ops.reshape(x, (-1, tokens, form.width)), form.width, f"{name}_proj")


def _project(keras: ModuleType, x: Any, width: int, name: str, bias: str | None = "d") -> Any:
    """Multiply every token by a kernel. The bias has one value per token (``td``) or not (``d``)."""
    layer = keras.layers.EinsumDense("btc,cd->btd", (x.shape[1], width), bias_axes=bias, name=name)
    return layer(x)
