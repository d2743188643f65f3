"""The one rule by which names out of tables and files are cleaned: slides, ids, classes and headers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

#: Characters without a picture that Unicode does not class as format characters: joiners and fillers.
_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\U0001d159")

#: Characters as wide and as empty as a space that Unicode does not class as white space.
_BLANK = str.maketrans("\u2800\u3164\uffa0", "   ")

#: Characters that choose a variant of the one before.
_VARIANTS = re.compile("[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef]")

#: What file names of slides and patches end with.
_ENDINGS = re.compile(
    r"(\.(ome|svs|tiff?|mrxs|ndpi|scn|vms|vmu|bif|svslide|czi|dcm|isyntax|qptiff|zarr|png|jpe?g|webp|bmp|h5|xml))+$"
)

#: Pairs of names that a warning shows.
_MOST_SHOWN = 5


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
    if _is_plain(name):
        return name
    seen = "".join(sign for sign in _VARIANTS.sub("", name.translate(_BLANK)) if not _invisible(sign))
    # Composed last: an invisible character keeps a letter and its accent apart.
    return " ".join(unicodedata.normalize("NFC", seen).split())


def clean_names(names: pd.Series) -> pd.Series:
    """:func:`clean_name` of every text of a column; missing values stay missing."""
    # Nearly every column is clean as it is, and one look at all of it is fast.
    return (
        names
        if _is_plain("".join(names.dropna().to_numpy(dtype=object)))
        else names.map(clean_name, na_action="ignore")
    )


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that a person would take for one.

    Parameters
    ----------
    names : iterable of str
        Cleaned.

    Returns
    -------
    list of tuple of str
        Names that differ only by case, by a file's ending such as ``.svs``, by zeros (``3``, ``3.0``, ``03``) or by
        what separates their parts (``G-31``, ``G_31``, ``G 31``): the first of each kind with each other one.
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        kinds.setdefault(_kind(name), []).append(name)
    return [(first, other) for first, *others in kinds.values() for other in others]


def look_alike_words(names: Iterable[str], what: str) -> str:
    """What a warning says of :func:`look_alikes`: which names, and how they differ; empty where there are none.

    Parameters
    ----------
    names : iterable of str
    what : str
        What they are names of, such as "slide".
    """
    pairs = look_alikes(names)
    if not pairs:
        return ""
    shown = ", ".join(f"{first!r} and {other!r}" for first, other in pairs[:_MOST_SHOWN])
    more = f" and {len(pairs) - _MOST_SHOWN} more pairs" if len(pairs) > _MOST_SHOWN else ""
    return f"some {what} names differ only by case, file ending, zeros or separators: {shown}{more}"


def _kind(name: str) -> str:
    """What look-alikes have in common."""
    folded = _ENDINGS.sub("", unicodedata.normalize("NFKC", name).casefold())
    folded = re.sub(r"^(\d+)\.0*$", r"\1", folded)
    folded = re.sub(r"(?<![\d.,])0+(?=\d)", "", folded)
    return "".join("_" if sign in " _" or unicodedata.category(sign) == "Pd" else sign for sign in folded)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _invisible(sign: str) -> bool:
    return not sign.isspace() and (unicodedata.category(sign) in ("Cc", "Cf") or sign in _EMPTY)
