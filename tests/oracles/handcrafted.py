"""Slow reference implementation of the handcrafted features, patch by patch, with standard libraries."""

from itertools import groupby

import numpy as np
import pywt
from scipy import fft, ndimage, stats
from skimage.color import rgb2hsv, rgb2lab, rgb_from_hed
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from tests.oracles.nuclei import nuclei
from tests.oracles.planes import centre_of, planes, regions, ring_of, stain_plane


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


def rounded(values):
    return np.floor(values + 0.5 + 1e-9)


def colour(patch):
    hsv, lab = rgb2hsv(patch), rgb2lab(patch)
    hue = rounded(hsv[:, :, 0] * 256) % 256
    channel_planes = {
        "red": patch[:, :, 0] / 255, "green": patch[:, :, 1] / 255, "blue": patch[:, :, 2] / 255,
        "hue": np.where(hue < 128, hue, hue - 256) / 256, "saturation": rounded(hsv[:, :, 1] * 255) / 255,
        "lightness": rounded(lab[:, :, 0] * 2.55) / 2.55, "green-red": rounded(lab[:, :, 1]),
        "blue-yellow": rounded(lab[:, :, 2]),
        "haematoxylin": stain_plane(patch, 0, 0.25) * (0.25 / 255), "eosin": stain_plane(patch, 1, 0.15) * (0.15 / 255),
        "residual": stain_plane(patch, 2, 0.15) * (0.15 / 255),
    }  # fmt: skip
    coloured = np.ptp(patch, axis=2) > 0
    out = {}
    for channel, plane in channel_planes.items():
        by_region = {}
        for region, part in (*regions(plane).items(), ("ring", ring_of(plane))):
            values = part
            if channel == "hue":
                values = part[{**regions(coloured), "ring": ring_of(coloured)}[region]]
                moments = hue_statistics(values)
            else:
                moments = linear_statistics(values)
            quantiles = np.quantile(values, [0.05, 0.5, 0.95]) if values.size else np.zeros(3)
            by_region[region] = (*moments, *quantiles)
        by_region["contrast"] = np.subtract(by_region["centre"], by_region["ring"])
        if channel == "hue":
            by_region["contrast"][0] -= np.round(by_region["contrast"][0])
        for region, count in (("whole", 7), ("centre", 2), ("ring", 1), ("contrast", 2)):
            statistics = ("mean", "spread", "skew", "kurtosis", "q05", "q50", "q95")[:count]
            for statistic, value in zip(statistics, by_region[region][:count], strict=True):
                out[f"colour_{statistic}_{channel}_{region}"] = value
    return out


def macenko_vectors(density):
    """Haematoxylin and eosin vectors, flatness, and whether vectors could be estimated, from (pixels, 3) densities."""
    known = rgb_from_hed[:2] / np.linalg.norm(rgb_from_hed[:2], axis=1)[:, None]
    tissue = density[(density > 0.065).all(axis=1)]
    if len(tissue) == 0:
        return known, 0, False
    values, vectors = np.linalg.eigh(np.cov(tissue.T, bias=True).reshape(3, 3))
    flatness = values[1] / values[2] if values[2] > 1e-12 else 0
    if len(tissue) < 64 or flatness < 1e-3:
        return known, max(flatness, 0), False
    first, second = vectors[:, 2], vectors[:, 1]
    first = first * (1 if first.sum() >= 0 else -1)
    angles = np.arctan2(tissue @ second, tissue @ first)
    ends = np.array([np.cos(a) * first + np.sin(a) * second for a in np.quantile(angles, [0.01, 0.99])]).clip(0)
    ends /= np.linalg.norm(ends, axis=1, keepdims=True)
    ends = ends[np.argsort(-ends[:, 0], kind="stable")]
    if np.arccos(min(ends[0] @ ends[1], 1)) < 0.05:
        return known, flatness, False
    return ends, flatness, True


def stain(patch):
    density = -np.log10((patch + 1.0) / 256)
    vectors, flatness, estimated = macenko_vectors(density.reshape(-1, 3))
    out = {}
    for stain_name, vector in zip(("haematoxylin", "eosin"), vectors, strict=True):
        for part, value in zip(("red", "green", "blue"), vector, strict=True):
            out[f"stain_{part}_{stain_name}_whole"] = value
    out["stain_angle_both_whole"] = np.arccos(vectors[0] @ vectors[1])
    out["stain_flatness_both_whole"] = flatness
    out["stain_tissue_both_whole"] = (density > 0.065).all(axis=2).mean()
    out["stain_fallback_both_whole"] = not estimated
    amounts = np.linalg.lstsq(vectors.T, density.reshape(-1, 3).T, rcond=None)[0].T.reshape(*patch.shape[:2], 2)
    means, ratios = {}, {}
    for region, part in {**regions(amounts), "ring": ring_of(amounts)}.items():
        values = part.reshape(-1, 2)
        means[region] = values.mean(axis=0)
        size = np.abs(means[region]).sum()
        ratios[region] = means[region][0] / size if size >= 1e-9 else 0
        if region != "ring":
            out[f"stain_ratio_both_{region}"] = ratios[region]
            for k, stain_name in enumerate(("haematoxylin", "eosin")):
                out[f"stain_mean_{stain_name}_{region}"] = means[region][k]
                out[f"stain_spread_{stain_name}_{region}"] = values[:, k].std() if np.ptp(values[:, k]) > 1e-12 else 0
    for k, stain_name in enumerate(("haematoxylin", "eosin")):
        out[f"stain_mean_{stain_name}_contrast"] = means["centre"][k] - means["ring"][k]
    out["stain_ratio_both_contrast"] = ratios["centre"] - ratios["ring"]
    return out


def sum_difference(matrix):
    """Entropy and skewness of the level sums, and entropy of the level differences, of a normed matrix."""
    i, j = np.indices(matrix.shape)
    sums, differences = np.bincount((i + j).ravel(), matrix.ravel()), np.bincount(abs(i - j).ravel(), matrix.ravel())
    mean = (sums * np.arange(31)).sum()
    variance, third = ((sums * (np.arange(31) - mean) ** power).sum() for power in (2, 3))
    skew = third / variance**1.5 if variance > 1e-12 else 0
    return stats.entropy(sums), skew, stats.entropy(differences)


def ring_pairs(levels):
    """Contrast and homogeneity of neighbours that are not both in the centre; None if all are."""
    inside = np.zeros(levels.shape, bool)
    centre_of(inside)[:] = True
    means = []
    for down, right in ((0, 1), (1, 1), (1, 0), (1, -1)):
        stop, start = levels.shape[0] - down, max(-right, 0)
        first = np.s_[:stop, start : levels.shape[1] - max(right, 0)]
        second = np.s_[down:, start + right : levels.shape[1] + min(right, 0)]
        outside = ~(inside[first] & inside[second])
        squares = (levels[first].astype(int) - levels[second])[outside] ** 2
        if not squares.size:
            return {"contrast": None, "homogeneity": None}
        means.append((squares.mean(), (1 / (1 + squares)).mean()))
    return dict(zip(("contrast", "homogeneity"), np.mean(means, axis=0), strict=True))


def cooccurrence(patch):
    out = {}
    for channel, plane in planes(patch, "grey", "absorbed", "haematoxylin", "eosin").items():
        for region, values in regions(plane).items():
            angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
            matrix = graycomatrix(values // 16, [1, 3], angles, levels=16, symmetric=True, normed=True)
            properties = {
                name.lower(): graycoprops(matrix, name)
                for name in ("contrast", "dissimilarity", "homogeneity", "ASM", "energy", "correlation", "entropy")
            }
            sum_properties = np.array([[sum_difference(matrix[:, :, d, a]) for a in range(4)] for d in range(2)])
            properties |= {
                "sum-entropy": sum_properties[..., 0],
                "sum-skew": sum_properties[..., 1],
                "difference-entropy": sum_properties[..., 2],
            }
            for name, by_distance in properties.items():
                for distance, by_direction in zip((1, 3), by_distance, strict=True):
                    out[f"cooccurrence_{name}-d{distance}-mean_{channel}_{region}"] = by_direction.mean()
                    if region == "whole":
                        out[f"cooccurrence_{name}-d{distance}-range_{channel}_{region}"] = np.ptp(by_direction)
        for name, value in ring_pairs(plane // 16).items():
            centre = out[f"cooccurrence_{name}-d1-mean_{channel}_centre"]
            out[f"cooccurrence_{name}-d1-mean_{channel}_contrast"] = centre - value if value is not None else 0
    return out


def runs(patch):
    out = {}
    for channel, plane in planes(patch, "grey", "absorbed").items():
        levels = plane // 32
        lines = [*levels, *levels.T]
        for turned in (levels, levels[:, ::-1]):
            lines += [turned.diagonal(k) for k in range(1 - len(levels), levels.shape[1])]
        level_lengths = [(int(level) + 1, len(list(run))) for line in lines for level, run in groupby(line)]
        level, length = np.array(level_lengths, dtype=float).T
        _, counts = np.unique(np.array(level_lengths), axis=0, return_counts=True)
        shares = [np.unique(values, return_counts=True)[1] / len(level_lengths) for values in (level, length)]
        values = {
            "short": (1 / length**2).mean(),
            "long": (length**2).mean(),
            "level-nonuniformity": (shares[0] ** 2).sum(),
            "length-nonuniformity": (shares[1] ** 2).sum(),
            "percentage": len(level_lengths) / levels.size / 4,
            "low": (1 / level**2).mean(),
            "high": (level**2).mean(),
            "entropy": stats.entropy(counts),
        }
        out |= {f"runs_{name}_{channel}_whole": value for name, value in values.items()}
    return out


def lbp(patch):
    out = {}
    for channel, plane in planes(patch, "grey", "haematoxylin").items():
        for points, radius in ((8, 1), (16, 2), (24, 3)):
            patterns = local_binary_pattern(plane, points, radius, "uniform")
            for region, values in regions(patterns).items():
                for pattern in range(points + 2):
                    name = f"p{pattern}" if pattern <= points else "mixed"
                    if region == "whole" or radius == 1:
                        out[f"lbp_r{radius}-{name}_{channel}_{region}"] = (values == pattern).mean()
                    if region == "centre" and radius == 1:
                        ring = (ring_of(patterns) == pattern).mean()
                        out[f"lbp_r{radius}-{name}_{channel}_contrast"] = (values == pattern).mean() - ring
    return out


def gradient(patch):
    out = {}
    for channel, levels in planes(patch, "grey", "absorbed").items():
        # no statistic depends on the offset, and subtracting it makes constant planes exactly zero
        plane = (levels.astype(float) - levels[0, 0]) / 255
        height, width = (size // 2 for size in plane.shape)
        half = plane[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean(axis=(1, 3))
        for scale, sigma, part in ((1, 1, plane), (2, 1, half), (4, 2, half)):
            edges = sigma * ndimage.gaussian_gradient_magnitude(part, sigma)
            offset = ndimage.gaussian_laplace(np.ones_like(part), sigma) * ndimage.gaussian_filter(part, sigma)
            blobs = sigma**2 * (ndimage.gaussian_laplace(part, sigma) - offset)
            blobs = blobs if channel == "grey" else -blobs
            steps = np.floor(blobs * 2**20 + 0.5)
            around = np.ones((3, 3))
            around[1, 1] = 0
            highest = ndimage.maximum_filter(steps, footprint=around, mode="constant", cval=-np.inf)
            peaks = (steps > highest) & (blobs > 0.02)
            size = 32 if scale == 1 else 16
            top, left = ((s - size) // 2 for s in part.shape)
            for region, box in {"whole": np.s_[:, :], "centre": np.s_[top : top + size, left : left + size]}.items():
                edge, blob, peak = edges[box], blobs[box], peaks[box]
                pixels = part.size * (1 if scale == 1 else 4) if region == "whole" else 1024
                values = {
                    "edge-mean": edge.mean(),
                    "edge-spread": edge.std(),
                    "edge-strong": (edge > 0.1).mean(),
                    "blob-spread": blob.std(),
                    "blob-dark": np.where(blob > 0, blob, 0).mean(),
                    "blob-bright": np.where(blob < 0, -blob, 0).mean(),
                    "blob-count": peak.sum() / pixels,
                    "blob-peak": blob[peak].mean() if peak.any() else 0,
                }
                for statistic, value in values.items():
                    out[f"gradient_{statistic}-s{scale}_{channel}_{region}"] = value
            outside = np.ones(part.shape, bool)
            outside[top : top + size, left : left + size] = False
            valleys = np.where(blobs > 0, blobs, 0)
            for statistic, plane_of in (("edge-mean", edges), ("blob-dark", valleys)):
                centre = out[f"gradient_{statistic}-s{scale}_{channel}_centre"]
                ring = plane_of[outside].mean() if outside.any() else centre
                out[f"gradient_{statistic}-s{scale}_{channel}_contrast"] = centre - ring
    return out


def log_gabor(shape, wavelength, direction):
    """A log-Gabor filter on the full spectrum, for both ends of its direction."""
    down, right = np.meshgrid(*(fft.fftfreq(size) for size in shape), indexing="ij")
    radius, angle = np.hypot(down, right), np.degrees(np.arctan2(down, right))
    difference = (angle - 30 * direction + 90) % 180 - 90
    radial = np.exp(-0.5 * (np.log(np.where(radius > 0, radius, 1) * wavelength) / np.log(0.65)) ** 2) * (radius > 0)
    radial *= (abs(down) < 0.5) & (abs(right) < 0.5)
    return radial * np.exp(-0.5 * (difference / 20) ** 2)


def gabor(patch):
    out = {}
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in patch.shape[:2]))
    window /= np.sqrt((window**2).mean())
    for channel, levels in planes(patch, "grey", "absorbed").items():
        plane = levels / 255.0
        spectrum = fft.fft2((plane - np.average(plane, weights=window)) * window)
        energies = np.array(
            [
                [(np.abs(fft.ifft2(spectrum * log_gabor(plane.shape, w, d))) ** 2).mean() for d in range(6)]
                for w in (3, 5, 8, 13, 21)
            ]
        )
        total = energies.sum(axis=1)
        for wavelength, row, energy in zip((3, 5, 8, 13, 21), energies, total, strict=True):
            vector = (row * np.exp(2j * np.radians(30 * np.arange(6)))).sum()
            stem = f"-w{wavelength}_{channel}_whole"
            out["gabor_energy" + stem] = np.log10(energy + 1e-6)
            out["gabor_share" + stem] = energy / total.sum() if total.sum() > 1e-15 else 0
            out["gabor_anisotropy" + stem] = abs(vector) / energy if energy > 1e-15 else 0
    return out


def block_entropies(levels):
    height, width = levels.shape[0] // 8, levels.shape[1] // 8
    blocks = levels[: 8 * height, : 8 * width].reshape(height, 8, width, 8).swapaxes(1, 2).reshape(-1, 64)
    return np.array([stats.entropy(np.bincount(block // 16, minlength=16)) for block in blocks])


def fractal_dimension(levels):
    side = min(levels.shape)
    sizes, density = (2, 4, 8, 16), []
    for size in sizes:
        height, width = levels.shape[0] // size, levels.shape[1] // size
        boxes = levels[: size * height, : size * width].reshape(height, size, width, size).astype(int)
        high, low = (f(axis=(1, 3)) * side // (256 * size) for f in (boxes.max, boxes.min))
        density.append((high - low + 1).mean() / size**2)
    return -np.polyfit(np.log(sizes), np.log(density), 1)[0]


def multiscale(patch):
    out = {}
    for channel, levels in planes(patch, "grey", "absorbed", "eosin").items():
        stem = f"_{channel}_whole"
        plane = levels / 255.0
        for step in (1, 2, 3):
            plane, (across, down, corner) = pywt.dwt2(plane[: len(plane) // 2 * 2, : plane.shape[1] // 2 * 2], "haar")
            sides = (across**2 + down**2).mean() / 2
            out[f"multiscale_haar{step}-sides{stem}"] = np.log10(sides + 1e-6)
            out[f"multiscale_haar{step}-corners{stem}"] = np.log10((corner**2).mean() + 1e-6)
        out["multiscale_fractal" + stem] = fractal_dimension(levels)
        out["multiscale_entropy-mean" + stem] = block_entropies(levels).mean()
        out["multiscale_entropy-spread" + stem] = block_entropies(levels).std()
        centre = block_entropies(centre_of(levels)).mean()
        touched = np.zeros(levels.shape)
        centre_of(touched)[:] = 1
        height, width = (size // 8 * 8 for size in levels.shape)
        touched = touched[:height, :width].reshape(height // 8, 8, width // 8, 8).max(axis=(1, 3)).ravel() > 0
        ring = block_entropies(levels)[~touched]
        out[f"multiscale_entropy-mean_{channel}_centre"] = centre
        out[f"multiscale_entropy-mean_{channel}_contrast"] = centre - ring.mean() if ring.size else 0
    return out


FAMILIES = {
    "colour": colour,
    "stain": stain,
    "cooccurrence": cooccurrence,
    "runs": runs,
    "lbp": lbp,
    "gradient": gradient,
    "gabor": gabor,
    "multiscale": multiscale,
    "nuclei": nuclei,
}


def table(patches, family, names):
    """The columns of one family for a few patches, float64, in the order of `names`."""
    rows = []
    for patch in patches:
        values = FAMILIES[family](patch)
        assert values.keys() == set(names), values.keys() ^ set(names)
        rows.append([values[name] for name in names])
    return np.array(rows, dtype=np.float64)
