"""Numba decorators for kernels. Kernels are compiled once, cached on disk and run without the interpreter's lock.

Kernels are plain loops with plain indices. An array expression, a sort or a slice takes longer to compile than all the
loops around it. Sums keep their order (no fast-math), so results do not depend on the processor. A kernel called with a
literal number, then with a variable, is compiled twice; write ``np.int64(0)`` for the literal.
"""

from __future__ import annotations

import numba

#: For functions called from Python.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
#: For functions that only other kernels call. They allocate no arrays, so Numba need not count references to arrays,
#: which takes time at each call, and when compiling.
inner_kernel = numba.njit(cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, _nrt=False)
#: As `inner_kernel`, but may fuse a multiplication and an addition. Only for results that are checked afterwards.
fused_kernel = numba.njit(
    cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, _nrt=False, fastmath={"contract"}
)
