"""The one exception that means "the input is wrong", not "the program is wrong"."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message says what was expected, what came and what to do. The command line shows it alone, without a traceback,
    and exits with status 2.
    """
