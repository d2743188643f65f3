"""The one exception that means "the input is wrong", not "the program is wrong", and how it is shown."""

import unicodedata


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what came and what to do. The command line shows it alone, without a traceback,
    and exits with status 2.
    """


def on_screen(text: str) -> str:
    r"""Return text with characters that steer a terminal, which names out of data may hold, written as ``\x1b``."""
    return "".join(repr(sign)[1:-1] if unicodedata.category(sign)[0] == "C" else sign for sign in text)


def innermost_reason(error: BaseException) -> str:
    """Return the innermost message of a chain of wrapped exceptions, on one line of at most 200 characters."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args and error.args[0]), Exception):
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__
