"""Fuzzes the reader of PyTorch checkpoints."""

import tempfile
from collections import OrderedDict
from pathlib import Path

from tests.torture.fuzz.driver import instrumented, main

with instrumented():
    import pickletools  # noqa: F401 - watched for coverage

    from histoblend.features.networks.weights import read_checkpoint

from tests.features.networks.test_weights import Called, Named, checkpoint, storage, tensor

FILE = Path(tempfile.mkdtemp(prefix="fuzz-files-"), "file.pth")


def seeds() -> list[bytes]:
    parameter = Called(Named("torch._utils", "_rebuild_parameter"), tensor(), True, OrderedDict())
    return [
        checkpoint({"weight": tensor(), "bias": tensor(2, (2, 3), (1, 2))}),
        checkpoint(OrderedDict(weight=parameter)),
        checkpoint({"w": tensor(of=storage("a", 10, "FloatStorage"))}, ("a",)),
        checkpoint({"weight": Called(Named("os", "system"), "true")}),
    ]


def read(content: bytes) -> None:
    FILE.write_bytes(content)
    arrays = read_checkpoint(FILE)
    assert sum(array.nbytes for array in arrays.values()) <= 64 * len(content)


if __name__ == "__main__":
    main("tests.torture.fuzz.weights", read, seeds)
