"""The copy of a fine-tuned network that a bundle predicts with: fewer symmetries, or 8-bit integers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.onnx_int8 import quantise
from histoblend.models.cnn import DESCRIPTION, ONNX_FILE, open_cnn


def lighten_cnn(folder: Path, patches: np.ndarray, *, symmetries: int, precision: str) -> str:
    """Make a stored network predict faster, in place. Its files may be links: they are replaced, not changed.

    Parameters
    ----------
    folder : Path
        From :func:`models.cnn.store_cnn`.
    patches : ndarray of shape (n, side, side, 3), dtype uint8
        Training patches, which calibrate the 8-bit network.
    symmetries : int
        Largest number of symmetries to average.
    precision : {"auto", "float32", "int8"}
        "auto" is "int8" if ONNX Runtime runs the network and the change is small, and "float32" otherwise.

    Returns
    -------
    str
        Why "auto" kept a network of ONNX Runtime in float32; empty if it did not.

    Raises
    ------
    InputError
        "int8" changes the network too much, or Keras runs it.
    """
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    description["symmetries"] = min(description["symmetries"], symmetries)
    path, problem = folder / ONNX_FILE, ""
    if precision == "int8" or (precision == "auto" and path.is_file()):
        try:
            content = _in_8_bits(folder, patches)
        except InputError as error:
            if precision == "int8":
                raise
            problem = str(error)
        else:
            _replace(path, content)
    _replace(folder / DESCRIPTION, json.dumps(description, indent=2).encode())
    return problem


def _in_8_bits(folder: Path, patches: np.ndarray) -> bytes:
    compute = open_cnn(folder)
    if not (folder / ONNX_FILE).is_file():
        raise InputError('final.precision "int8" needs a network run by ONNX Runtime; got one of Keras. Choose "auto".')
    inputs, step = compute.prepare(patches), compute.network.batch
    batches = [inputs[start : start + step] for start in range(0, len(inputs), step)]
    return quantise("the fine-tuned network", (folder / ONNX_FILE).read_bytes(), batches, scores=True)


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
