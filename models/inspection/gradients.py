"""Gradient of a network's log-odds with respect to an inner feature map, for each Keras backend."""

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
    """Make a function that takes inner maps and returns the last maps and the gradient of the log-odds.

    Keras has no gradient function that works on every backend, so each backend's is used.

    Parameters
    ----------
    upper : keras.Model
        Model with two outputs, as in :class:`Cut`.
    gradient : bool
        Whether to compute the gradient; otherwise None is returned in its place.

    Returns
    -------
    callable
        Takes inner maps of shape (n, height, width, channels). The gradient has the same shape.
    """
    backend = load_keras().backend.backend()
    if not gradient:
        return lambda maps: (np.asarray(upper.predict_on_batch(maps)[0]), None)
    makers = {"tensorflow": _with_tensorflow, "jax": _with_jax, "torch": _with_torch}
    if backend not in makers:
        raise InputError(
            f"gradients need one of the Keras backends {', '.join(makers)}; got {backend}. Set KERAS_BACKEND."
        )
    return makers[backend](upper)


def _with_tensorflow(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import tensorflow

    def outputs_and_gradient(maps: Any) -> tuple[Any, Any]:
        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(maps)
            last, log_odds = upper(maps, training=False)
        return last, tape.gradient(log_odds, maps)

    # Traced once for any batch size: TensorFlow warns about functions that it traces repeatedly.
    shape = tensorflow.TensorSpec((None, *upper.input.shape[1:]), tensorflow.float32)
    traced = tensorflow.function(outputs_and_gradient).get_concrete_function(shape)

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last, gradient = traced(tensorflow.constant(maps, tensorflow.float32))
        return last.numpy(), gradient.numpy()

    return run


def _with_jax(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import jax  # type: ignore[import-not-found]

    trained = [variable.value for variable in upper.trainable_variables]
    fixed = [variable.value for variable in upper.non_trainable_variables]

    def total(maps: Any) -> tuple[Any, Any]:
        (last, log_odds), _ = upper.stateless_call(trained, fixed, maps, training=False)
        return log_odds.sum(), last

    outputs_and_gradient = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (_, last), gradient = outputs_and_gradient(np.asarray(maps, np.float32))
        return np.asarray(last), np.asarray(gradient)

    return run


def _with_torch(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    keras = load_keras()

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch  # type: ignore[import-not-found]

        # Keras places the tensor on the device that its backend uses.
        inner = keras.ops.convert_to_tensor(np.asarray(maps, np.float32)).detach().requires_grad_(True)
        last, log_odds = upper(inner, training=False)
        (gradient,) = torch.autograd.grad(log_odds.sum(), inner)
        return last.detach().cpu().numpy(), gradient.cpu().numpy()

    return run
