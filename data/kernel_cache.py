"""Numba's cache of kernels that call kernels of other files.

Numba looks at a kernel's own file to tell whether its cached machine code is out of date. A kernel that calls others,
or reads constants, of other files would go on with the old ones after these were edited.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tied(compiled: Callable[[Any], Any], *siblings: str) -> Callable[[Any], Any]:
    """Make a decorator whose kernels are compiled again when files beside their own have changed.

    The name that Numba stores a kernel under gets a digest of these files.

    Parameters
    ----------
    compiled : callable
        What :func:`numba.njit` gave for some options.
    *siblings : str
        Names of modules in the folder of the decorated function.

    Returns
    -------
    callable
        Takes a function and returns the kernel.
    """

    def decorate(function: Any) -> Any:
        own = Path(inspect.getfile(function))
        digest = hashlib.sha256(b"\0".join(own.with_name(f"{name}.py").read_bytes() for name in siblings))
        function.__qualname__ += f"_{digest.hexdigest()[:16]}"
        return compiled(function)

    return decorate
