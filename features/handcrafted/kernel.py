"""Numba decorators for kernels. Kernels are compiled once, cached on disk and run without the interpreter's lock.

Kernels are plain loops with plain indices. An array expression, a sort or a slice takes longer to compile than all the
loops around it. Sums keep their order (no fast-math), so results do not depend on the processor. A kernel called with a
literal number, then with a variable, is compiled twice; write ``np.int64(0)`` for the literal.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

#: For functions called from Python.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)
#: For functions that only other kernels call. They allocate no arrays, so Numba need not count references to arrays,
#: which takes time at each call, and when compiling.
inner_kernel = numba.njit(
    cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True, _nrt=False
)
#: As `inner_kernel`, but may fuse a multiplication and an addition. Only for results that are checked afterwards.
fused_kernel = numba.njit(
    cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True, _nrt=False,
    fastmath={"contract"},
)  # fmt: skip


def are_cached(*modules: ModuleType) -> bool:
    """Whether the kernels of these modules need not be compiled, because the cache on disk has all of them."""
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}
    return all(_is_cached(compiled) for compiled in kernels)


def _is_cached(compiled: Any) -> bool:
    # Numba has no public function for this. Its index is empty if the source file has changed since. Keys consist of
    # signature, processor and code.
    processor = compiled.targetctx.codegen().magic_tuple()
    return any(key[1] == processor for key in compiled._cache._cache_file._load_index())
