"""Words of the field for the parts of column names, in British spelling: what readers may search for."""

from __future__ import annotations

#: Spellings, British and American.
SPELLINGS = (
    ("haem", "hem"),
    ("colour", "color"),
    ("grey", "gray"),
    ("centre", "center"),
    ("neighbour", "neighbor"),
    ("normalis", "normaliz"),
)
#: Words for how many values become one: the last part of a statistic.
POOLS = {
    "mean": ("average",),
    "spread": ("standard deviation", "variation", "heterogeneity"),
    "skew": ("asymmetry",),
    "kurtosis": ("tails",),
    "q05": ("5 % quantile", "low values"),
    "q50": ("50 % quantile",),
    "q90": ("90 % quantile", "high values"),
    "q95": ("95 % quantile", "high values"),
    "max": ("largest", "highest"),
    "nearest": ("central nucleus",),
    "range": ("direction dependence", "directionality"),
}
REGIONS = {
    "centre": ("middle of the patch",),
    "ring": ("ring", "periphery"),
    "contrast": ("centre minus ring", "difference from the ring"),
}
CHANNELS = {
    "red": ("RGB",),
    "green": ("RGB",),
    "blue": ("RGB",),
    "hue": ("HSV", "tone"),
    "saturation": ("HSV", "colourfulness"),
    "lightness": ("brightness", "Lab"),
    "green-red": ("redness", "Lab"),
    "blue-yellow": ("yellowness", "Lab"),
    "haematoxylin": ("nuclear stain", "basophilia"),
    "eosin": ("pink stain", "eosinophilia"),
    "residual": ("third stain",),
    "grey": ("brightness", "luminance"),
    "absorbed": ("light absorbed in red", "nuclear stain"),
    "both": ("haematoxylin and eosin",),
}
FAMILIES = {
    "colour": ("colour", "stain colour"),
    "stain": ("Macenko", "stain vector", "optical density"),
    "cooccurrence": ("texture", "grey-level co-occurrence", "GLCM", "Haralick"),
    "runs": ("texture", "run length matrix", "GLRLM"),
    "lbp": ("texture", "local binary pattern", "LBP"),
    "gradient": (),
    "gabor": ("texture", "log-Gabor filter", "spatial frequency", "wavelength"),
    "multiscale": ("texture", "multiscale"),
    "nuclei": ("nuclei", "cells"),
    "embedding": ("deep feature", "network feature", "neural network"),
    "cnn": ("deep feature", "neural network", "CNN"),
}
_ENTROPY = ("disorder", "randomness")
_SIZE = ("nucleus size", "nuclear size", "size of nuclei")
_SHAPE = ("nucleus shape", "nuclear shape", "shape of nuclei")
_SPACING = ("nuclear spacing", "distance between nuclei", "cell density", "tissue architecture")
_DENSITY = ("cell density", "cellularity")
_DARK_BLOBS = ("dark spots", "nucleus-like spots", "Laplacian")
#: Words for a family's statistics, without pool, distance, scale and wavelength.
STATISTICS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {},
    "stain": {
        "red": ("colour of the stain",),
        "green": ("colour of the stain",),
        "blue": ("colour of the stain",),
        "angle": ("stain separation",),
        "flatness": ("one stain or two", "stain mixture"),
        "tissue": ("tissue amount", "background", "white space"),
        "fallback": ("missing stain", "default stain vectors"),
        "mean": ("stain amount", "stain concentration"),
        "spread": ("stain amount", "stain concentration"),
        "ratio": ("haematoxylin to eosin ratio", "stain balance"),
        "mean-on-slide": ("stain amount", "stain concentration"),
        "ratio-on-slide": ("haematoxylin to eosin ratio", "stain balance"),
    },
    "cooccurrence": {
        "contrast": ("local variation", "inertia"),
        "dissimilarity": ("local variation",),
        "homogeneity": ("smoothness", "inverse difference moment"),
        "asm": ("angular second moment", "orderliness"),
        "energy": ("orderliness",),
        "correlation": ("similar neighbours",),
        "entropy": _ENTROPY,
        "sum-entropy": _ENTROPY,
        "sum-skew": ("asymmetry",),
        "difference-entropy": _ENTROPY,
    },
    "runs": {
        "short": ("fine texture",),
        "long": ("coarse texture", "flat areas"),
        "level-nonuniformity": ("uneven levels",),
        "length-nonuniformity": ("uneven run lengths",),
        "percentage": ("run percentage", "fine texture"),
        "low": ("low levels",),
        "high": ("high levels",),
        "entropy": _ENTROPY,
    },
    "lbp": {
        **{f"r{r}-mixed": ("non-uniform pattern",) for r in (1, 2, 3)},
        **{f"r{r}-p0": ("peaks", "spots") for r in (1, 2, 3)},
        **{f"r{r}-p{4 * r}": ("edges",) for r in (1, 2, 3)},
        **{f"r{r}-p{8 * r}": ("pits", "flat areas") for r in (1, 2, 3)},
    },
    "gradient": {
        "edge-mean": ("gradient", "sharpness"),
        "edge-spread": ("gradient", "sharpness"),
        "edge-strong": ("gradient", "sharpness"),
        "blob-spread": ("spots", "Laplacian"),
        "blob-dark": _DARK_BLOBS,
        "blob-bright": ("bright spots", "Laplacian"),
        "blob-count": ("number of spots", *_DARK_BLOBS),
        "blob-peak": _DARK_BLOBS,
    },
    "gabor": {
        "energy": ("contrast", "power"),
        "share": ("relative power",),
        "anisotropy": ("direction dependence", "directionality", "alignment"),
    },
    "multiscale": {
        "haar1-sides": ("Haar wavelet", "level 1", "horizontal and vertical"),
        "haar1-corners": ("Haar wavelet", "level 1"),
        "haar2-sides": ("Haar wavelet", "level 2", "horizontal and vertical"),
        "haar2-corners": ("Haar wavelet", "level 2"),
        "haar3-sides": ("Haar wavelet", "level 3", "horizontal and vertical"),
        "haar3-corners": ("Haar wavelet", "level 3"),
        "fractal": ("complexity", "roughness", "box counting"),
        "entropy": _ENTROPY,
    },
    "nuclei": {
        "count": ("cell count", "nucleus count", *_DENSITY),
        "fraction": ("nuclear cover", *_DENSITY),
        "contrast": ("nuclear contrast", "hyperchromasia", "staining intensity"),
        "area": (*_SIZE, "nucleus area", "karyomegaly"),
        "perimeter": (*_SIZE, "nucleus outline", "circumference"),
        "circularity": (*_SHAPE, "roundness", "form factor"),
        "eccentricity": (*_SHAPE, "elongation"),
        "solidity": (*_SHAPE, "convexity", "irregular nuclear outline"),
        "extent": (*_SHAPE, "extent", "bounding box"),
        "major": (*_SIZE, "major axis", "nuclear diameter"),
        "minor": (*_SIZE, "minor axis", "nuclear diameter"),
        "intensity": ("hyperchromasia", "nuclear intensity", "staining intensity"),
        "grain": ("chromatin texture", "nuclear texture", "chromatin clumping", "coarse chromatin"),
        "rim": ("rim contrast", "nuclear border", "contrast to the background"),
        "gap": ("nearest neighbour", *_SPACING),
        "crowd": ("crowding of nuclei", "overlapping nuclei", *_DENSITY),
        "threshold": ("nuclear segmentation",),
        "tree": ("minimum spanning tree", "graph", *_SPACING),
        "gabriel": ("graph", *_SPACING),
        "delaunay": ("triangulation", "graph", *_SPACING),
        "cell-disorder": ("irregular spacing", "tessellation", "tissue architecture"),
        "orientation": ("nuclear alignment", "loss of polarity", "anisotropy", "direction of nuclei"),
        "central-gap": ("central nucleus",),
    },
}
#: Nucleus measures whose spread pathologists call pleomorphism.
SIZE_AND_SHAPE = frozenset(("area", "perimeter", "circularity", "eccentricity", "solidity", "extent", "major", "minor"))
