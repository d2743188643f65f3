"""How kernels are compiled: once, into a cache that later processes read, and without the interpreter's lock.

Kernels are plain loops with plain indices: an array expression, a sort or a slice costs more time to compile than all
of the loops around it. Sums keep their order (no fast mathematics), so that a value does not depend on the processor.
"""

from __future__ import annotations

import numba

#: For functions that are called from Python.
kernel = numba.njit(cache=True, nogil=True, error_model="numpy")
#: For functions that only kernels call.
part = numba.njit(cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True)
#: As `part`, where a product and a sum may be rounded once: only where the result is looked at again.
contracted = numba.njit(cache=True, nogil=True, error_model="numpy", no_cpython_wrapper=True, fastmath={"contract"})
