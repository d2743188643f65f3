"""A function called in a Python process of its own, whose errors arrive as if it had been called here."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from histoblend.data.errors import InputError


def call_in_child(function: Callable[..., Any], arguments: Sequence[Any], environment: Mapping[str, str]) -> Any:
    """Call a function in a new process, silently, and return what it returns.

    Parameters
    ----------
    function : callable
        Of a module.
    arguments : sequence
        Picklable, as is what the function returns.
    environment : mapping of str to str
        Variables that differ from those of this process.

    Raises
    ------
    InputError, MemoryError, OSError
        As the function raises them.
    RuntimeError
        In place of any other exception: its class may be known only there.
    joblib.externals.loky.process_executor.TerminatedWorkerError
        The process was killed.
    """
    from joblib.externals.loky import ProcessPoolExecutor

    with ProcessPoolExecutor(1, env=dict(environment), initializer=_be_silent) as child:
        return child.submit(_answer, function, arguments).result()


def _be_silent() -> None:
    """Keep what libraries print off the terminal; what matters is raised."""
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def _answer(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    try:
        return function(*arguments)
    except (InputError, MemoryError, OSError):
        raise
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
