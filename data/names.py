"""One rule to clean names from tables and files: slides, ids, classes and headers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

import pandas as pd

#: Invisible characters that Unicode does not class as format characters: joiners and fillers.
_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\U0001d159")

#: Characters that look like a space but that Unicode does not class as white space.
_BLANK = str.maketrans("\u2800\u3164\uffa0", "   ")

#: Characters that select a variant of the previous character.
_VARIANTS = re.compile("[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef]")

#: File endings of slides and patches.
_ENDINGS = re.compile(
    r"(\.(ome|svs|tiff?|btf|mrxs|ndpis?|scn|vms|vmu|bif|svslide|czi|zvi|dcm|dicom|isyntax|i2syntax|qptiff|sdpc|kfb|tmap|mds|"
    r"mdsx|vsi|lif|lsm|nd2|oib|oif|zarr|png|jpe?g|jp2|j2k|webp|bmp|gif|h5|hdf5|npy|xml|json|geojson|csv|zip|gz|tar))+$"
)

#: Quotes, and the characters that make a spreadsheet treat a number as text: ``'007``, ``="007"``.
_QUOTES = "\"'`=\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"

#: Numbers as programs and spreadsheets write them: ``3``, ``3.0``, ``3,0``, ``+3``, ``3e+00``.
_NUMBER = re.compile(r"\+?(\d{1,20})(?:[.,](\d{0,5}))?(?:e\+?(\d{1,3}))?")

#: Lower-case Cyrillic and Greek letters whose capitals look like Latin ones.
_LATIN = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctyxijsabezhikmnoptyx",
)

#: Most pairs of names that a warning lists.
_MAX_SHOWN = 5


def clean_name(name: str) -> str:
    """Remove invisible characters and surrounding white space from a name.

    Parameters
    ----------
    name : str

    Returns
    -------
    str
        In Unicode's composed form (NFC). White space inside becomes single spaces, so a no-break space equals a
        space. Names that look the same become equal.
    """
    if _is_plain(name):
        return name
    visible = "".join(character for character in _VARIANTS.sub("", name.translate(_BLANK)) if not _invisible(character))
    # Compose last: an invisible character can separate a letter from its accent.
    return " ".join(unicodedata.normalize("NFC", visible).split())


def clean_names(names: pd.Series) -> pd.Series:
    """Apply :func:`clean_name` to every text of a column; missing values stay missing."""
    # Most columns are already clean, and checking the joined text is fast.
    return (
        names
        if _is_plain("".join(names.dropna().to_numpy(dtype=object)))
        else names.map(clean_name, na_action="ignore")
    )


def look_alikes(names: Iterable[str]) -> list[tuple[str, str]]:
    """Find pairs of different names that a person would read as the same.

    Parameters
    ----------
    names : iterable of str
        Cleaned names.

    Returns
    -------
    list of tuple of str
        Names that differ only by case, file ending such as ``.svs``, leading folders, quotes, number format (``3``,
        ``3.0``, ``03``, ``3E+00``), separators (``G-31``, ``G_31``, ``G31``) or alphabet (a Cyrillic letter that looks
        Latin). The first name of each set of look-alikes is paired with each other one.
    """
    key_of = {name: _comparison_key(name) for name in sorted(set(names))}
    keys = set(key_of.values())
    names_of: dict[str, list[str]] = {}
    for name, key in key_of.items():
        # A leading folder is dropped only if the rest is a name too: a/1 and b/1 are two slides.
        last = key.rpartition("/")[2]
        names_of.setdefault(last if last in keys else key, []).append(name)
    return [(first, other) for first, *others in names_of.values() for other in others]


def describe_look_alikes(names: Iterable[str], what: str) -> str:
    """Describe :func:`look_alikes` for a warning: the names and how they differ; empty if there are none.

    Parameters
    ----------
    names : iterable of str
    what : str
        What the names denote, such as "slide".
    """
    pairs = look_alikes(names)
    if not pairs:
        return ""
    shown = ", ".join(f"{first!r} and {other!r}" for first, other in pairs[:_MAX_SHOWN])
    more = f" and {len(pairs) - _MAX_SHOWN} more pairs" if len(pairs) > _MAX_SHOWN else ""
    ways = "case, file ending, folder, quotes, zeros, separators or alphabet"
    return f"some {what} names differ only by {ways}: {shown}{more}"


def _comparison_key(name: str) -> str:
    """Return a key that is equal for look-alikes."""
    folded = unicodedata.normalize("NFKC", name).casefold().translate(_LATIN).replace("\\", "/")
    folded = _ENDINGS.sub("", folded.strip(_QUOTES).rstrip("/."))
    if number := _NUMBER.fullmatch(folded):
        whole, fraction, exponent = (part or "" for part in number.groups())
        return format(Decimal(f"{whole}.{fraction}0e{exponent or 0}").normalize(), "f")
    folded = re.sub(r"(?<![\d.,])0+(?=\d)", "", folded)
    parts = "".join(
        "_" if character in " _" or unicodedata.category(character) == "Pd" else character for character in folded
    )
    return re.sub(r"(?<=[^\W\d_])_(?=\d)|(?<=\d)_(?=[^\W\d_])", "", parts)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _invisible(character: str) -> bool:
    return not character.isspace() and (unicodedata.category(character) in ("Cc", "Cf") or character in _EMPTY)
