"""Call a function in a separate Python process and raise its errors in this one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from histoblend.data.errors import InputError


def call_in_child(function: Callable[..., Any], arguments: Sequence[Any], environment: Mapping[str, str]) -> Any:
    """Call a function in a new process without output, and return its result.

    Parameters
    ----------
    function : callable
        Defined at the top level of a module; its result must be picklable.
    arguments : sequence
        Picklable.
    environment : mapping of str to str
        Environment variables that differ from this process.

    Raises
    ------
    InputError, MemoryError, OSError
        If the function raises them.
    RuntimeError
        In place of any other exception, whose class may not be importable here.
    joblib.externals.loky.process_executor.TerminatedWorkerError
        If the process was killed.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, env=dict(environment), initializer=_silence) as child:
        return child.submit(_call, function, arguments).result()


def _silence() -> None:
    """Silence the output of libraries; errors are raised."""
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _call(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    try:
        return function(*arguments)
    except (InputError, MemoryError, OSError):
        raise
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
