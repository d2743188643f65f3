"""The one rule by which names out of tables and files are cleaned: slides, ids, classes and headers."""

from __future__ import annotations

import unicodedata

import pandas as pd

#: Characters without a picture that Unicode does not class as format characters: joiners, fillers, blanks.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def clean_name(name: str) -> str:
    """Name without what no reader sees: white space around it and invisible characters.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
        In Unicode's composed form (NFC); white space inside becomes single spaces, so that a no-break space and a
        space are the same name. Names that look the same are the same.
    """
    if name.isascii() and name.isprintable() and " " not in name:
        return name
    seen = "".join(sign for sign in unicodedata.normalize("NFC", name) if not _invisible(sign))
    return " ".join(seen.split())


def clean_names(names: pd.Series) -> pd.Series:
    """:func:`clean_name` of every text of a column; missing values stay missing."""
    return names.map(clean_name, na_action="ignore")


def _invisible(sign: str) -> bool:
    if sign.isspace():
        return False
    return (
        unicodedata.category(sign) in ("Cc", "Cf") or sign in _BLANK or "\ufe00" <= sign <= "\ufe0f"  # variants
    )
