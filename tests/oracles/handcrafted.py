"""The handcrafted features the slow, plain way: one patch at a time, with scikit-image and SciPy, by column name."""

import numpy as np
from scipy import ndimage, stats
from skimage.color import rgb2gray, rgb2hed, rgb2hsv, rgb2lab
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops


def centre_of(plane):
    top, left = (plane.shape[0] - 32) // 2, (plane.shape[1] - 32) // 2
    return plane[top : top + 32, left : left + 32]


def regions(plane):
    return {"whole": plane, "centre": centre_of(plane)}


def grey(patch):
    # ties of the integer weights are rounded up; the small number lifts those that floats put just below
    return np.floor(rgb2gray(patch) * 255 + 0.5 + 1e-9).astype(np.uint8)


def stain(patch, number, scale):
    return np.floor(np.minimum(rgb2hed(patch)[:, :, number] / scale * 255 + 0.5, 255)).astype(np.uint8)


def planes(patch):
    return {"grey": grey(patch), "haematoxylin": stain(patch, 0, 0.25), "eosin": stain(patch, 1, 0.15)}


def linear_statistics(values):
    if np.ptp(values) == 0:
        return values.flat[0], 0, 0, 0
    return values.mean(), values.std(), stats.skew(values, axis=None), stats.kurtosis(values, axis=None)


def hue_statistics(turns):
    if turns.size == 0:
        return 0, 0, 0, 0
    vectors = np.exp(2j * np.pi * turns)
    mean = vectors.mean()
    angle = np.angle(mean) if abs(mean) >= 1e-9 else 0
    doubled = (vectors**2 * np.exp(-2j * angle)).mean()
    return angle / (2 * np.pi), 1 - abs(mean), doubled.imag, doubled.real


def colour(patch):
    hsv, lab, hed = rgb2hsv(patch), rgb2lab(patch), rgb2hed(patch)
    named = {
        "red": patch[:, :, 0] / 255, "green": patch[:, :, 1] / 255, "blue": patch[:, :, 2] / 255,
        "hue": hsv[:, :, 0], "saturation": hsv[:, :, 1], "value": hsv[:, :, 2],
        "lightness": lab[:, :, 0], "green-red": lab[:, :, 1], "blue-yellow": lab[:, :, 2],
        "haematoxylin": hed[:, :, 0], "eosin": hed[:, :, 1], "dab": hed[:, :, 2],
    }  # fmt: skip
    out = {}
    for channel, plane in named.items():
        for region, part in regions(plane).items():
            values = part
            if channel == "hue":
                turns = part[np.ptp(regions(patch)[region], axis=2) > 0]
                values = np.where(turns > 0.5, turns - 1, turns)
                moments = hue_statistics(values)
            else:
                moments = linear_statistics(values)
            quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]) if values.size else np.zeros(5)
            statistics = ("mean", "spread", "skew", "kurtosis", "q05", "q25", "q50", "q75", "q95")
            for statistic, value in zip(statistics, (*moments, *quantiles), strict=True):
                out[f"colour_{statistic}_{channel}_{region}"] = value
    return out


def cooccurrence(patch):
    out = {}
    for channel, plane in planes(patch).items():
        for region, values in regions(plane).items():
            angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
            matrix = graycomatrix(values // 8, [1, 3, 5], angles, levels=32, symmetric=True, normed=True)
            for name in ("contrast", "dissimilarity", "homogeneity", "ASM", "energy", "correlation", "entropy"):
                for distance, four in zip((1, 3, 5), graycoprops(matrix, name), strict=True):
                    stem = f"cooccurrence_{name.lower()}-d{distance}"
                    out[f"{stem}-mean_{channel}_{region}"] = four.mean()
                    out[f"{stem}-range_{channel}_{region}"] = np.ptp(four)
    return out


def lbp(patch):
    out = {}
    for channel in ("grey", "haematoxylin"):
        for points, radius in ((8, 1), (16, 2), (24, 3)):
            patterns = local_binary_pattern(planes(patch)[channel], points, radius, "uniform")
            for region, values in regions(patterns).items():
                for pattern in range(points + 2):
                    name = f"p{pattern}" if pattern <= points else "mixed"
                    out[f"lbp_r{radius}-{name}_{channel}_{region}"] = (values == pattern).mean()
    return out


def gradient(patch):
    out = {}
    for channel in ("grey", "haematoxylin"):
        plane = planes(patch)[channel] / 255
        for sigma in (1, 2, 4):
            edges = sigma * ndimage.gaussian_gradient_magnitude(plane, sigma)
            leak = ndimage.gaussian_laplace(np.ones_like(plane), sigma) * ndimage.gaussian_filter(plane, sigma)
            blobs = sigma**2 * (ndimage.gaussian_laplace(plane, sigma) - leak)
            for region, edge in regions(edges).items():
                blob = regions(blobs)[region]
                values = {
                    "edge-mean": edge.mean(),
                    "edge-spread": edge.std(),
                    "edge-strong": (edge > 0.1).mean(),
                    "blob-spread": blob.std(),
                    "blob-dark": np.where(blob > 0, blob, 0).mean(),
                    "blob-bright": np.where(blob < 0, -blob, 0).mean(),
                }
                for statistic, value in values.items():
                    out[f"gradient_{statistic}-s{sigma}_{channel}_{region}"] = value
    return out


def binomial(plane):
    weights = [1, 4, 6, 4, 1]
    sums = ndimage.correlate1d(ndimage.correlate1d(plane.astype(int), weights, 0), weights, 1)
    return ((sums + 128) // 256).astype(np.uint8)


NUCLEUS = (
    "area", "perimeter", "circularity", "eccentricity", "solidity", "extent", "major", "minor", "intensity", "grain",
)  # fmt: skip


def pooled(values):
    return {"mean": np.mean(values), "spread": np.std(values), "max": np.max(values)}


def nuclei(patch):
    plane = planes(patch)["haematoxylin"]
    smooth = binomial(plane)
    threshold = max(int(threshold_otsu(smooth)), 31)
    labels = label(smooth > threshold, connectivity=2)
    found = [part for part in regionprops(labels, intensity_image=plane / 255) if part.area >= 12]
    mask = np.isin(labels, [part.label for part in found])
    centroids = np.array([part.centroid for part in found]).reshape(-1, 2)
    apart = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    gaps = apart.min(axis=1) if len(found) > 1 else np.zeros(len(found))
    start = (np.array(plane.shape) - 32) // 2
    central = ((centroids >= start) & (centroids < start + 32)).all(axis=1)
    out = {}
    for region in ("whole", "centre"):
        member = np.ones(len(found), bool) if region == "whole" else central
        inside, level = regions(mask)[region], regions(plane)[region] / 255
        both = inside.any() and not inside.all()
        values = {
            "count": member.sum(),
            "fraction": inside.mean(),
            "threshold": threshold / 255,
            "contrast": level[inside].mean() - level[~inside].mean() if both else 0,
            "gap-mean": gaps[member].mean() if member.any() else 0,
            "gap-spread": gaps[member].std() if member.any() else 0,
        }
        measured = [
            {
                "area": part.area,
                "perimeter": part.perimeter,
                "circularity": 4 * np.pi * part.area / part.perimeter**2 if part.perimeter else 0,
                "eccentricity": part.eccentricity,
                "solidity": part.solidity,
                "extent": part.extent,
                "major": part.axis_major_length,
                "minor": part.axis_minor_length,
                "intensity": part.intensity_mean,
                "grain": part.intensity_std,
            }
            for part, chosen in zip(found, member, strict=True)
            if chosen
        ]
        for name in NUCLEUS:
            pools = pooled([row[name] for row in measured]) if measured else dict.fromkeys(("mean", "spread", "max"), 0)
            values |= {f"{name}-{pool}": value for pool, value in pools.items()}
        for statistic, value in values.items():
            out[f"nuclei_{statistic}_haematoxylin_{region}"] = value
    return out


FAMILIES = {
    "colour": colour,
    "cooccurrence": cooccurrence,
    "lbp": lbp,
    "gradient": gradient,
    "nuclei": nuclei,
}


def table(patches, family, names):
    """The columns of one family for a few patches, float64, ordered by the names given."""
    rows = []
    for patch in patches:
        values = FAMILIES[family](patch)
        assert values.keys() == set(names)
        rows.append([values[name] for name in names])
    return np.array(rows, dtype=np.float64)
