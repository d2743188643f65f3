"""Gradient of a network's log-odds by an inner feature map, from each backend of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backend import load_keras

if TYPE_CHECKING:
    import keras


def upper_function(
    upper: keras.Model, *, gradient: bool = True
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """Make a function of the inner maps (n, h, w, c): to the last maps and the log-odds' gradient by the inner ones.

    Keras has no gradient of its own: each backend's is asked.

    Parameters
    ----------
    upper : keras.Model
        With two outputs, as in :class:`Cut`.
    gradient : bool
        Without it, the second value is None.
    """
    backend = load_keras().backend.backend()
    if not gradient:
        return lambda maps: (np.asarray(upper.predict_on_batch(maps)[0]), None)
    makers = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
    if backend not in makers:
        raise InputError(f"gradients need Keras on {', '.join(makers)}; got {backend}. Set KERAS_BACKEND to one.")
    return makers[backend](upper)


def _by_tensorflow(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import tensorflow

    def both(maps: Any) -> tuple[Any, Any]:
        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(maps)
            last, log_odds = upper(maps, training=False)
        return last, tape.gradient(log_odds, maps)

    # Traced once and for any batch: TensorFlow warns of functions of one name that it traces again and again.
    shape = tensorflow.TensorSpec((None, *upper.input.shape[1:]), tensorflow.float32)
    traced = tensorflow.function(both).get_concrete_function(shape)

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last, slope = traced(tensorflow.constant(maps, tensorflow.float32))
        return last.numpy(), slope.numpy()

    return run


def _by_jax(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import jax  # type: ignore[import-not-found]

    trained = [variable.value for variable in upper.trainable_variables]
    fixed = [variable.value for variable in upper.non_trainable_variables]

    def total(maps: Any) -> tuple[Any, Any]:
        (last, log_odds), _ = upper.stateless_call(trained, fixed, maps, training=False)
        return log_odds.sum(), last

    both = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (_, last), slope = both(np.asarray(maps, np.float32))
        return np.asarray(last), np.asarray(slope)

    return run


def _by_torch(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    keras = load_keras()

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch  # type: ignore[import-not-found]

        # Keras knows which device its backend uses.
        held = keras.ops.convert_to_tensor(np.asarray(maps, np.float32)).detach().requires_grad_(True)
        last, log_odds = upper(held, training=False)
        (slope,) = torch.autograd.grad(log_odds.sum(), held)
        return last.detach().cpu().numpy(), slope.cpu().numpy()

    return run
