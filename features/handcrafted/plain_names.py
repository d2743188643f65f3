"""Plain names, units and synonyms of feature columns, such as "spread of nuclear area, whole patch".

Names are built from the four parts of a column name with the tables in this module. A test fails if a registered
column has no words here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from histoblend.features.handcrafted import families, search_words
from histoblend.features.handcrafted.column import Column
from histoblend.features.handcrafted.families import Parts, parse_column

_REGIONS = {
    "whole": "whole patch",
    "centre": "centre",
    "ring": "outside the centre",
    "contrast": "centre minus outside",
}
_CHANNELS = {"grey": "grey", "absorbed": "red absorption", "haematoxylin": "haematoxylin", "eosin": "eosin"}
_POOLS = {
    "mean": "mean {}",
    "spread": "spread of {}",
    "skew": "skewness of {}",
    "kurtosis": "kurtosis of {}",
    "q05": "5th percentile of {}",
    "q50": "median {}",
    "q90": "90th percentile of {}",
    "q95": "95th percentile of {}",
    "max": "maximum {}",
}
_COLOURS = {
    "red": "red level",
    "green": "green level",
    "blue": "blue level",
    "hue": "hue",
    "saturation": "saturation",
    "lightness": "lightness",
    "green-red": "green-to-red balance (a*)",
    "blue-yellow": "blue-to-yellow balance (b*)",
    "haematoxylin": "haematoxylin amount",
    "eosin": "eosin amount",
    "residual": "residual stain amount",
}
_STAIN = {
    "red": "red component of the {} vector",
    "green": "green component of the {} vector",
    "blue": "blue component of the {} vector",
    "angle": "angle between the stain vectors",
    "flatness": "second-to-first eigenvalue of optical density",
    "tissue": "tissue fraction",
    "fallback": "stain vectors not estimated",
    "mean": "mean {} amount (patch's vectors)",
    "spread": "spread of {} amount (patch's vectors)",
    "ratio": "haematoxylin share (patch's vectors)",
    "mean-on-slide": "mean {} amount (slide's vectors)",
    "ratio-on-slide": "haematoxylin share (slide's vectors)",
}
_PAIRS = {
    "contrast": "contrast",
    "dissimilarity": "dissimilarity",
    "homogeneity": "homogeneity",
    "asm": "uniformity",
    "energy": "energy",
    "correlation": "correlation",
    "entropy": "entropy",
    "sum-entropy": "sum entropy",
    "sum-skew": "sum skewness",
    "difference-entropy": "difference entropy",
}
_RUNS = {
    "short": "short-run emphasis",
    "long": "long-run emphasis",
    "level-nonuniformity": "run level non-uniformity",
    "length-nonuniformity": "run length non-uniformity",
    "percentage": "runs per pixel",
    "low": "low-level run emphasis",
    "high": "high-level run emphasis",
    "entropy": "run entropy",
}
_GRADIENT = {
    "edge-mean": "mean edge strength",
    "edge-spread": "spread of edge strength",
    "edge-strong": "share of strong edges",
    "blob-spread": "spread of blob response",
    "blob-dark": "dark blob strength",
    "blob-bright": "bright blob strength",
    "blob-count": "density of dark blobs",
    "blob-peak": "mean peak of dark blobs",
}
_GABOR = {
    "energy": "energy",
    "share": "energy share",
    "anisotropy": "anisotropy",
}
_MULTISCALE = {
    "haar1-sides": "axis-aligned wavelet energy at 2 px",
    "haar1-corners": "diagonal wavelet energy at 2 px",
    "haar2-sides": "axis-aligned wavelet energy at 4 px",
    "haar2-corners": "diagonal wavelet energy at 4 px",
    "haar3-sides": "axis-aligned wavelet energy at 8 px",
    "haar3-corners": "diagonal wavelet energy at 8 px",
    "fractal": "fractal dimension",
    "entropy-mean": "mean local entropy",
    "entropy-spread": "spread of local entropy",
}
#: Measures of one nucleus: after "mean", and before "of the most central nucleus".
_NUCLEUS = {
    "area": ("nuclear area", "area"),
    "perimeter": ("nuclear perimeter", "perimeter"),
    "circularity": ("nuclear circularity", "circularity"),
    "eccentricity": ("nuclear eccentricity", "eccentricity"),
    "solidity": ("nuclear solidity", "solidity"),
    "extent": ("nuclear box fill", "box fill"),
    "major": ("nuclear length", "length"),
    "minor": ("nuclear width", "width"),
    "intensity": ("nuclear darkness", "darkness"),
    "grain": ("chromatin contrast", "chromatin contrast"),
    "rim": ("local nuclear contrast", "local contrast"),
    "gap": ("nearest-neighbour distance of nuclei", "nearest-neighbour distance"),
    "crowd": ("nuclear crowding within 20 px", "crowding within 20 px"),
}
_NUCLEI = {
    "count": "number of nuclei",
    "fraction": "area fraction of nuclei",
    "contrast": "darkness of nuclei minus background",
    "threshold": "Otsu threshold of darkness",
    "tree-mean": "mean spanning-tree edge between nuclei",
    "tree-spread": "spread of spanning-tree edges between nuclei",
    "tree-max": "longest spanning-tree edge between nuclei",
    "gabriel-mean": "mean Gabriel edge between nuclei",
    "gabriel-spread": "spread of Gabriel edges between nuclei",
    "gabriel-degree": "Gabriel neighbours per nucleus",
    "delaunay-mean": "mean Delaunay edge between nuclei",
    "delaunay-spread": "spread of Delaunay edges between nuclei",
    "delaunay-max": "longest Delaunay edge between nuclei",
    "cell-disorder": "disorder of Voronoi cells around nuclei",
    "orientation": "spread of nuclear orientation",
    "central-gap": "distance from the middle to the nearest nucleus",
}
_NETWORKS = {
    "efficientnet": "EfficientNet", "mobilenet": "MobileNet", "resnet": "ResNet", "resnet50": "ResNet50",
    "resnet101": "ResNet101", "densenet121": "DenseNet121", "densenet201": "DenseNet201", "convnext": "ConvNeXt",
    "vgg16": "VGG16", "vgg19": "VGG19", "nasnet": "NASNet",
}  # fmt: skip
#: Options in the names of embedding columns, as regular expressions.
_OPTIONS = {
    r"(\d+)px": "{} px",
    r"crop(\d+)": "crop of {} px",
    "d4": "8 symmetries",
    "max": "maxima",
    "both": "averages and maxima",
    r"stage(\d+)": "stage {}",
    "random": "random weights",
    "local": "local weights",
}
#: Plain units by family (or "" for all) and the unit in the registry.
_UNITS = {
    ("", "px"): "px",
    ("", "px²"): "px²",
    ("", "1 / px²"): "per px²",
    ("", "turn"): "turns of 360°",
    ("", "rad"): "radians",
    ("", "nat"): "nats",
    ("", "level"): "levels of 16",
    ("cooccurrence", "level²"): "levels² of 16",
    ("runs", "level²"): "levels² of 8",
    ("", "6 decades"): "log10 optical density / 6",
    ("stain", "decade"): "log10 optical density",
    ("", "decade"): "log10 energy",
}
_LAB = {"lightness": "L* (0–100)", "green-red": "a* (−128 to 127)", "blue-yellow": "b* (−128 to 127)"}
_MOST_CENTRAL = "of the most central nucleus"
_IN_SLIDE = "-in-slide"
_NORMALISED = "-normalised"


def plain_name(column: str) -> str:
    """Return the plain name of a column, such as "spread of nuclear area, whole patch".

    Parameters
    ----------
    column : str
        Handcrafted or embedding column or a channel of the fine-tuned network, also relative to the slide
        (:mod:`.slide_context`) or of stain-normalised patches.

    Returns
    -------
    str
        Unique among the columns of a table. The column itself if its name does not have four parts; its parts
        separated by spaces if there are no words for it.
    """
    try:
        parts = parse_column(column)
    except ValueError:
        return column
    measured, relative, normalised = _measured(parts.statistic)
    parts = parts._replace(statistic=measured)
    words = _words(parts) or " ".join(parts[:3]).replace("-", " ")
    # The most central nucleus of a patch need not be inside the centre.
    region = "" if words.endswith(_MOST_CENTRAL) else f", {_REGIONS.get(parts.region, parts.region)}"
    return words + " relative to slide" * relative + region + ", stains normalised" * normalised


def unit(column: str) -> str:
    """Return the unit of a column in plain words.

    Returns
    -------
    str
        A unit such as "px²", a scale such as "0–1", or "none". Columns relative to the slide are in "slide SDs":
        distances from the slide's median in (robust) standard deviations of the slide.
    """
    if f"{_IN_SLIDE}_" in column:
        return "slide SDs"
    name = column.replace("-on-slide_", "_").replace(f"{_NORMALISED}_", "_")
    entry = _registry().get(name)
    return "none" if entry is None else _unit(entry, parse_column(name))


def synonyms(column: str) -> tuple[str, ...]:
    """Return other words for a column, to search for.

    Returns
    -------
    tuple of str
        Words of the field, such as "nucleus size" for nuclear area, then the American spellings of these and of the
        plain name.
    """
    try:
        parts = parse_column(column)
    except ValueError:
        return ()
    statistic, relative, normalised = _measured(parts.statistic)
    words = [*_statistic_words(parts.family, statistic), *search_words.CHANNELS.get(parts.channel, ())]
    words += [*search_words.FAMILIES.get(parts.family, ()), *search_words.REGIONS.get(parts.region, ())]
    words += ["slide context", "compared with the slide"] * relative + ["stain normalisation"] * normalised
    british = [*words, plain_name(column)]
    return tuple(dict.fromkeys([*words, *(_american(text) for text in british if _american(text) != text)]))


def _statistic_words(family: str, statistic: str) -> list[str]:
    """Words for a statistic and its pool, such as the mean."""
    known = search_words.STATISTICS.get(family, {})
    name = re.sub(r"-(d\d+-(mean|range)|s\d+|w\d+|mean|spread|q90|max|nearest|degree)$", "", statistic)
    pool = statistic.rsplit("-", 1)[-1]
    words = [*known.get(statistic, known.get(name, ())), *search_words.POOLS.get(pool, ())]
    pleomorphism = family == "nuclei" and pool == "spread" and name in search_words.SIZE_AND_SHAPE
    return [*words, "pleomorphism", "anisonucleosis"] if pleomorphism else words


def _american(text: str) -> str:
    for british, american in search_words.SPELLINGS:
        text = text.replace(british, american).replace(british.capitalize(), american.capitalize())
    return text


def matching_columns(query: str, columns: Iterable[str]) -> list[str]:
    """Return the columns that a query describes, in the given order.

    Parameters
    ----------
    query : str
        A column name or plain name gives that column only. Other words give every column with all of them at the
        start of a word of its name, plain name or synonyms.
    columns : iterable of str

    Returns
    -------
    list of str
    """
    columns = list(columns)
    exact = [column for column in columns if query.strip().lower() in (column, plain_name(column).lower())]
    words = _searchable(query).split()
    return exact or [column for column in columns if words and all(f" {word}" in _text(column) for word in words)]


def _text(column: str) -> str:
    return _searchable(" ".join(["", column, plain_name(column), *synonyms(column)]))


def _searchable(text: str) -> str:
    """Lower-case words, separated by single spaces."""
    return re.sub(r"[^\w%*²]+|_", " ", text.lower())


def _measured(statistic: str) -> tuple[str, bool, bool]:
    """Statistic without suffixes; whether it is relative to the slide; whether stains were normalised."""
    own = statistic.removesuffix(_IN_SLIDE)
    measured = own.removesuffix(_NORMALISED)
    return measured, own != statistic, measured != own


def _words(parts: Parts) -> str:
    """Words for family, statistic and channel; empty if there are none."""
    words = {
        "colour": _colour, "stain": _stain, "cooccurrence": _cooccurrence, "runs": _runs, "lbp": _lbp,
        "gradient": _gradient, "gabor": _gabor, "multiscale": _multiscale, "nuclei": _nuclei,
        "embedding": _embedding, "cnn": _cnn,
    }  # fmt: skip
    channel = parts.channel if parts.family == "colour" else _CHANNELS.get(parts.channel, parts.channel)
    try:
        return words[parts.family](parts.statistic, channel)
    except (KeyError, ValueError):
        return ""


def _colour(statistic: str, channel: str) -> str:
    return _POOLS[statistic].format(_COLOURS[channel])


def _stain(statistic: str, channel: str) -> str:
    return _STAIN[statistic].format(channel)


def _cooccurrence(statistic: str, channel: str) -> str:
    name, distance, pooled = statistic.rsplit("-", 2)
    pixels = f"{distance.removeprefix('d')} px"
    if pooled == "range":
        return f"anisotropy of {_PAIRS[name]}, {channel} at {pixels}"
    return f"{_PAIRS[name]} of {channel} texture at {pixels}"


def _runs(statistic: str, channel: str) -> str:
    return f"{_RUNS[statistic]} of {channel} texture"


def _lbp(statistic: str, channel: str) -> str:
    radius, pattern = statistic.split("-")
    neighbours = 8 * int(radius.removeprefix("r"))
    if pattern == "mixed":
        return f"irregular patterns of {neighbours} neighbours, {channel}"
    return f"pixels with {pattern.removeprefix('p')} of {neighbours} neighbours as high, {channel}"


def _gradient(statistic: str, channel: str) -> str:
    name, scale = statistic.rsplit("-s", 1)
    return f"{_GRADIENT[name]}, {channel} at {int(scale)} px"


def _gabor(statistic: str, channel: str) -> str:
    name, wavelength = statistic.rsplit("-w", 1)
    return f"{_GABOR[name]} of {int(wavelength)} px texture waves, {channel}"


def _multiscale(statistic: str, channel: str) -> str:
    return f"{_MULTISCALE[statistic]}, {channel}"


def _nuclei(statistic: str, channel: str) -> str:
    if statistic in _NUCLEI:
        return _NUCLEI[statistic]
    name, pool = statistic.rsplit("-", 1)
    measure, of_one = _NUCLEUS[name]
    return f"{of_one} {_MOST_CENTRAL}" if pool == "nearest" else _POOLS[pool].format(measure)


def _embedding(statistic: str, _: str) -> str:
    *network, number = statistic.split("-")
    options: list[str] = []
    while network and (option := _option(network[-1])):
        options.insert(0, option)
        network.pop()
    name = "-".join(
        _NETWORKS.get(part, part if part.startswith("v") and part[1:].isdigit() else part.capitalize())
        for part in network
    )
    return f"embedding column {int(number)} of {name}" + (f" ({', '.join(options)})" if options else "")


def _option(part: str) -> str:
    """Words for an option in the name of an embedding column; empty if it is none."""
    for pattern, words in _OPTIONS.items():
        if match := re.fullmatch(pattern, part):
            return words.format(*match.groups())
    return ""


def _cnn(statistic: str, channel: str) -> str:
    if statistic == "pooled":
        return f"channel {int(channel.removeprefix('channel-'))} of the fine-tuned network"
    return {"log-odds": "log-odds of the fine-tuned network"}[statistic]


@cache
def _registry() -> dict[str, Column]:
    return {column.name: column for column in families.columns()}


def _unit(entry: Column, parts: Parts) -> str:
    if entry.unit != "1":
        return _UNITS[parts.family, entry.unit] if (parts.family, entry.unit) in _UNITS else _UNITS["", entry.unit]
    if parts.family == "colour" and parts.statistic not in ("skew", "kurtosis") and parts.channel in _LAB:
        return _LAB[parts.channel]
    if parts.family == "nuclei" and parts.statistic.partition("-")[0] in ("count", "crowd", "gabriel"):
        return "nuclei"
    if (parts.family, parts.statistic) == ("stain", "fallback"):
        return "0 or 1"
    return "0–1" if entry.low >= 0 and entry.high <= 1 else "−1 to 1" if entry.low >= -1 and entry.high <= 1 else "none"
