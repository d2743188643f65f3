"""How many workers a number stands for."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from histoblend.data.errors import InputError


def count_workers(workers: Any) -> int:
    """Number of workers that is meant, by joblib's rule.

    Parameters
    ----------
    workers : int
        As many; -1 for one per core that this process may use, -2 for one fewer, and so on, but at least one.

    Returns
    -------
    int

    Raises
    ------
    InputError
        It is 0 or no whole number.

    Examples
    --------
    >>> count_workers(3)
    3
    """
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers == 0:
        raise InputError(
            f"workers must be a positive number, or -1 for one per core (-2 for one fewer); got {workers!r}."
        )
    wanted = int(workers)
    if wanted > 0:
        return wanted
    from joblib import cpu_count

    return max(1, int(cpu_count()) + 1 + wanted)
