"""Numba decorators for kernels. Kernels are compiled once, cached on disk and run without the interpreter's lock.

Kernels are plain loops with plain indices. An array expression, a sort or a slice takes longer to compile than all the
loops around it. Sums keep their order (no fast-math), so results do not depend on the processor.
"""

from __future__ import annotations

import numba

#: For functions called from Python.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
#: For functions that only other kernels call.
inner_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True)
#: As `inner_kernel`, but may fuse a multiplication and an addition. Only for results that are checked afterwards.
fused_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
