"""The exception for invalid input, and text that is safe to print in a terminal."""

import unicodedata

#: Advice about a file that no version of this program can have written.
AWAY = "Do not load it: it was not written by this program."


class InputError(ValueError):
    """The user's input cannot be used; the program itself is not at fault.

    The message says what was expected, what was given and what to do. The command line prints only the message, without
    a traceback, and exits with status 2.
    """


def escape_controls(text: str) -> str:
    r"""Return text with control characters, such as those in file names, escaped as ``\x1b``."""
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character)[0] == "C" else character for character in text
    )


def innermost_reason(error: BaseException) -> str:
    """Return the innermost message of a chain of wrapped exceptions, on one line of at most 200 characters."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args and error.args[0]), Exception):
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__
