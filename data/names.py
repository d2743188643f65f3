"""The one rule by which names out of tables and files are cleaned: slides, ids, classes and headers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

import pandas as pd

#: Characters without a picture that Unicode does not class as format characters: joiners and fillers.
_EMPTY = frozenset("\u034f\u115f\u1160\u17b4\u17b5\U0001d159")

#: Characters as wide and as empty as a space that Unicode does not class as white space.
_BLANK = str.maketrans("\u2800\u3164\uffa0", "   ")

#: Characters that choose a variant of the one before.
_VARIANTS = re.compile("[\ufe00-\ufe0f\u180b-\u180d\u180f\U000e0100-\U000e01ef]")

#: What file names of slides and patches end with.
_ENDINGS = re.compile(
    r"(\.(ome|svs|tiff?|btf|mrxs|ndpis?|scn|vms|vmu|bif|svslide|czi|zvi|dcm|dicom|isyntax|i2syntax|qptiff|sdpc|kfb|tmap|mds|"
    r"mdsx|vsi|lif|lsm|nd2|oib|oif|zarr|png|jpe?g|jp2|j2k|webp|bmp|gif|h5|hdf5|npy|xml|json|geojson|csv|zip|gz|tar))+$"
)

#: Quotes, and the signs by which a spreadsheet keeps a text from being a number: ``'007``, ``="007"``.
_QUOTES = "\"'`=\u00b4\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb"

#: Numbers as programs and spreadsheets write them: ``3``, ``3.0``, ``3,0``, ``+3``, ``3e+00``.
_NUMBER = re.compile(r"\+?(\d{1,20})(?:[.,](\d{0,5}))?(?:e\+?(\d{1,3}))?")

#: Cyrillic and Greek letters in lower case whose capitals look like Latin ones.
_LATIN = str.maketrans(
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0456\u0458\u0455"
    "\u03b1\u03b2\u03b5\u03b6\u03b7\u03b9\u03ba\u03bc\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7",
    "abekmhopctyxijsabezhikmnoptyx",
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
        Names that differ only by case, by a file's ending such as ``.svs``, by folders in front, by quotes, by how a
        number is written (``3``, ``3.0``, ``03``, ``3E+00``), by what separates their parts (``G-31``, ``G_31``,
        ``G31``) or by alphabet (a Cyrillic letter that looks Latin): the first of each kind with each other one.
    """
    kind_of = {name: _kind(name) for name in sorted(set(names))}
    known = set(kind_of.values())
    kinds: dict[str, list[str]] = {}
    for name, kind in kind_of.items():
        # A folder in front counts where another name has none: a/1 and b/1 are two slides.
        last = kind.rpartition("/")[2]
        kinds.setdefault(last if last in known else kind, []).append(name)
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
    ways = "case, file ending, folder, quotes, zeros, separators or alphabet"
    return f"some {what} names differ only by {ways}: {shown}{more}"


def _kind(name: str) -> str:
    """What look-alikes have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold().translate(_LATIN).replace("\\", "/")
    folded = _ENDINGS.sub("", folded.strip(_QUOTES).rstrip("/."))
    if number := _NUMBER.fullmatch(folded):
        whole, fraction, exponent = (part or "" for part in number.groups())
        return format(Decimal(f"{whole}.{fraction}0e{exponent or 0}").normalize(), "f")
    folded = re.sub(r"(?<![\d.,])0+(?=\d)", "", folded)
    parts = "".join("_" if sign in " _" or unicodedata.category(sign) == "Pd" else sign for sign in folded)
    return re.sub(r"(?<=[^\W\d_])_(?=\d)|(?<=\d)_(?=[^\W\d_])", "", parts)


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _invisible(sign: str) -> bool:
    return not sign.isspace() and (unicodedata.category(sign) in ("Cc", "Cf") or sign in _EMPTY)
