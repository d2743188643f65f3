"""Number of workers, by joblib's rule."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from histoblend.data.errors import InputError


def count_workers(workers: Any, name: str = "workers") -> int:
    """Return the number of workers, by joblib's rule.

    Parameters
    ----------
    workers : int
        A positive number as is; -1 for one per core that this process may use, -2 for one fewer, and so on. At least
        one.
    name : str
        Name of the setting, for the message.

    Returns
    -------
    int

    Raises
    ------
    InputError
        ``workers`` is 0 or not an integer.

    Examples
    --------
    >>> count_workers(3)
    3
    """
    if isinstance(workers, bool) or not isinstance(workers, Integral) or workers == 0:
        raise InputError(
            f"{name} must be a positive number, or -1 for one per core (-2 for one fewer); got {workers!r}."
        )
    number = int(workers)
    if number > 0:
        return number
    from joblib import cpu_count

    return max(1, int(cpu_count()) + 1 + number)
