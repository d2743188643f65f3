"""Can this machine use a GPU, and which backends of Keras are built for one? Nothing is imported to find out."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

#: Paths that exist if there is a driver for a GPU: NVIDIA's (some containers show the second only), AMD's, and
#: Windows' inside its Linux subsystem.
_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
#: Backends of Keras in the order in which they are chosen on a GPU: the first one was measured (docs/gpu.md).
GPU_BACKENDS = ("torch", "jax", "tensorflow")


def has_driver() -> bool:
    """Return whether there is a driver for a GPU."""
    return any(Path(path).exists() for path in _DRIVERS)


def gpu_backends() -> list[str]:
    """Names of the installed backends that can use this machine's GPU, the preferred one first."""
    return [name for name in GPU_BACKENDS if is_gpu_build(name)] if has_driver() else []


def is_gpu_build(backend: str) -> bool:
    """Return whether a backend of Keras is installed and built for GPUs."""
    spec = importlib.util.find_spec(backend)
    if spec is None:
        return False
    if backend == "torch":  # its version file says for what it was built
        version = Path(str(spec.origin)).with_name("version.py")
        text = version.read_text(encoding="utf-8") if version.is_file() else ""
        return re.search(r"^(cuda|hip)\b[^=\n]*= *['\"]", text, re.MULTILINE) is not None
    if backend == "jax":
        return any(re.match(r"jax[-_](cuda|rocm)\d+[-_]plugin$", name) for name in _distributions())
    return "tensorflow" in _distributions()  # the CPU build is called tensorflow-cpu


def _distributions() -> set[str]:
    return {name.lower() for found in importlib.metadata.distributions() if (name := found.metadata["Name"])}
