"""Numba's cache for kernels that use code of other files.

Numba compares only a kernel's own file to decide whether its cached machine code is out of date. If a kernel calls
kernels or reads constants of other files, Numba would keep using the old code after those files change.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def recompiled_with(compiled: Callable[[Any], Any], *siblings: str) -> Callable[[Any], Any]:
    """Make a decorator that recompiles a kernel when its sibling files change.

    The name under which Numba caches the kernel contains a digest of these files.

    Parameters
    ----------
    compiled : callable
        The decorator that :func:`numba.njit` returned for the chosen options.
    *siblings : str
        Names of modules in the same folder as the decorated function.

    Returns
    -------
    callable
        Decorator that returns the compiled kernel.
    """

    def decorate(function: Any) -> Any:
        own = Path(inspect.getfile(function))
        digest = hashlib.sha256(b"\0".join(own.with_name(f"{name}.py").read_bytes() for name in siblings))
        function.__qualname__ += f"_{digest.hexdigest()[:16]}"
        return compiled(function)

    return decorate
