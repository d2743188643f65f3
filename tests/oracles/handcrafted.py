"""Slow reference implementation of the handcrafted features, patch by patch, with standard libraries."""

from itertools import groupby

import numpy as np
import pywt
from scipy import fft, ndimage, stats
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import ConvexHull, Voronoi
from scipy.spatial.distance import cdist
from skimage.color import rgb2gray, rgb2hed, rgb2hsv, rgb2lab, rgb_from_hed
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import remove_small_holes


def centre_of(plane):
    top, left = (plane.shape[0] - 32) // 2, (plane.shape[1] - 32) // 2
    return plane[top : top + 32, left : left + 32]


def regions(plane):
    return {"whole": plane, "centre": centre_of(plane)}


def ring_of(plane):
    outside = np.ones(plane.shape[:2], bool)
    centre_of(outside)[:] = False
    return plane[outside] if outside.any() else plane.reshape(-1, *plane.shape[2:])


def grey(patch):
    # ties of the integer weights are rounded up; the small number lifts ties that floats put just below
    return np.floor(rgb2gray(patch) * 255 + 0.5 + 1e-9).astype(np.uint8)


def stain_plane(patch, number, scale):
    return np.floor(np.minimum(rgb2hed(patch)[:, :, number] / scale * 255 + 0.5, 255)).astype(np.uint8)


def planes(patch, *names):
    makers = {
        "grey": lambda: grey(patch),
        "absorbed": lambda: 255 - patch[:, :, 0],
        "haematoxylin": lambda: stain_plane(patch, 0, 0.25),
        "eosin": lambda: stain_plane(patch, 1, 0.15),
    }
    return {name: makers[name]() for name in names}


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


def binomial(plane):
    """Filter levels times 256 by (1, 4, 6, 4, 1) / 16 in both directions, rounded half up."""
    weights = [1, 4, 6, 4, 1]
    sums = ndimage.correlate1d(ndimage.correlate1d(plane, weights, 1), weights, 0)
    return (sums + 128) // 256


def climb(mask, heights):
    """Label the pixels of the mask by the peak that a climb reaches; 0 outside and in segments below 12 px."""
    order = {(r, c): (heights[r, c], -r * mask.shape[1] - c) for r, c in np.argwhere(mask).tolist()}

    def next_pixel(pixel):
        r, c = pixel
        around = [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return max((neighbour for neighbour in around if neighbour in order), key=order.__getitem__)

    labels, pixels_by_peak = np.zeros(mask.shape, int), {}
    for pixel in order:
        peak = pixel
        while next_pixel(peak) != peak:
            peak = next_pixel(peak)
        pixels_by_peak.setdefault(peak, []).append(pixel)
    kept = [pixels for _, pixels in sorted(pixels_by_peak.items()) if len(pixels) >= 12]
    for number, pixels in enumerate(kept, 1):
        labels[tuple(np.transpose(pixels))] = number
    return labels


def find_nuclei(plane):
    """Labels of nuclei, and Otsu's threshold."""
    smooth = binomial(plane.astype(int) * 256)
    threshold = int(threshold_otsu(((smooth + 128) // 256).astype(np.uint8)))
    around = ndimage.correlate1d(ndimage.correlate1d(plane.astype(int), np.ones(25, int), 0), np.ones(25, int), 1) / 625
    mask = (smooth / 256 > (threshold + around) / 2) & (smooth > 31 * 256)
    mask = remove_small_holes(mask, max_size=16, connectivity=1)
    for _ in range(3):
        smooth = binomial(smooth)
    return climb(mask, smooth), threshold


def rim(plane, labels, part):
    top, left, bottom, right = part.bbox
    box = np.s_[max(top - 3, 0) : bottom + 3, max(left - 3, 0) : right + 3]
    outside = plane[box][labels[box] == 0]
    return (part.intensity_mean - outside.mean()) / 255 if outside.size else 0


def graphs(centroids):
    names = ("tree-mean", "tree-spread", "tree-max", "gabriel-mean", "gabriel-spread", "gabriel-degree")
    if len(centroids) < 2:
        return dict.fromkeys(names, 0)
    distances = cdist(centroids, centroids)
    tree = minimum_spanning_tree(distances).data
    squares = distances**2
    pairs = [
        (i, j)
        for i in range(len(distances))
        for j in range(i)
        if not (squares[i] + squares[j] < squares[i, j] * (1 - 1e-9)).any()
    ]
    edges = np.array([distances[pair] for pair in pairs])
    values = (tree.mean(), tree.std(), tree.max(), edges.mean(), edges.std(), 2 * len(edges) / len(distances))
    return dict(zip(names, values, strict=True))


def cells(centroids, shape):
    """Delaunay edges and disorder of the cells, from the Voronoi diagram of the nuclei and their mirror images."""
    names = ("delaunay-mean", "delaunay-spread", "delaunay-max", "cell-disorder")
    n = len(centroids)
    if n < 2:
        return dict.fromkeys(names, 0)
    points = [centroids]
    for axis, size in enumerate(shape):
        for border in (-0.5, size - 0.5):
            image = centroids.copy()
            image[:, axis] = 2 * border - image[:, axis]
            points.append(image)
    diagram = Voronoi(np.concatenate(points))
    areas = [ConvexHull(diagram.vertices[diagram.regions[region]]).volume for region in diagram.point_region[:n]]
    edges = [
        np.linalg.norm(centroids[i] - centroids[j])
        for (i, j), side in zip(diagram.ridge_points, diagram.ridge_vertices, strict=True)
        if max(i, j) < n and np.linalg.norm(np.subtract(*diagram.vertices[side])) > 1e-6
    ]
    disorder = 1 - 1 / (1 + np.std(areas) / np.mean(areas))
    lengths = (np.mean(edges), np.std(edges), np.max(edges)) if edges else (0, 0, 0)
    return dict(zip(names, (*lengths, disorder), strict=True))


NUCLEUS = (
    "area", "perimeter", "circularity", "eccentricity", "solidity", "extent", "major", "minor", "intensity", "grain",
    "rim", "gap", "crowd",
)  # fmt: skip


def measure(part, plane, labels):
    return (
        part.area,
        part.perimeter,
        4 * np.pi * part.area / part.perimeter**2 if part.perimeter else 0,
        part.eccentricity,
        part.solidity,
        part.extent,
        part.axis_major_length,
        part.axis_minor_length,
        part.intensity_mean / 255,
        part.intensity_std / 255,
        rim(plane, labels, part),
    )


def axes_spread(parts):
    moments = [part.moments_central / part.area for part in parts]
    across, down, mixed = (np.array([m[index] for m in moments]) for index in ((0, 2), (2, 0), (1, 1)))
    weight = np.array([part.eccentricity for part in parts])
    if weight.sum() == 0:
        return 0
    directions = np.exp(1j * np.arctan2(2 * mixed, across - down)) * weight
    return 1 - abs(directions.sum()) / weight.sum()


def nuclei(patch):
    plane = planes(patch, "absorbed")["absorbed"]
    labels, threshold = find_nuclei(plane)
    parts = regionprops(labels, intensity_image=plane.astype(float))
    out = dict.fromkeys(
        [f"nuclei_{n}-{p}_absorbed_whole" for n in NUCLEUS for p in ("mean", "spread", "q90")]
        + [f"nuclei_{n}-{p}_absorbed_centre" for n in NUCLEUS for p in ("mean", "max", "nearest")]
        + [f"nuclei_{n}-mean_absorbed_contrast" for n in NUCLEUS]
        + ["nuclei_orientation_absorbed_whole", "nuclei_central-gap_absorbed_whole"],
        0,
    )
    centroids = np.array([part.centroid for part in parts]).reshape(-1, 2)
    start = (np.array(plane.shape) - 32) // 2
    central = ((centroids >= start) & (centroids < start + 32)).all(axis=1)
    for region, count in (("whole", len(parts)), ("centre", central.sum())):
        inside, level = regions(labels > 0)[region], regions(plane)[region] / 255
        mixed = inside.any() and not inside.all()
        out[f"nuclei_count_absorbed_{region}"] = count
        out[f"nuclei_fraction_absorbed_{region}"] = inside.mean()
        out[f"nuclei_contrast_absorbed_{region}"] = level[inside].mean() - level[~inside].mean() if mixed else 0
    out["nuclei_threshold_absorbed_whole"] = threshold / 255
    out |= {f"nuclei_{name}_absorbed_whole": value for name, value in graphs(centroids).items()}
    out |= {f"nuclei_{name}_absorbed_whole": value for name, value in cells(centroids, plane.shape).items()}
    if not parts:
        return out
    distances = cdist(centroids, centroids)
    np.fill_diagonal(distances, np.inf)
    gaps = distances.min(axis=1) if len(parts) > 1 else np.zeros(1)
    crowds = (distances <= 20).sum(axis=1)
    rows = [(*measure(part, plane, labels), gap, crowd) for part, gap, crowd in zip(parts, gaps, crowds, strict=True)]
    away = np.linalg.norm(centroids - (np.array(plane.shape) - 1) / 2, axis=1)
    nearest = np.flatnonzero(away <= away.min() * (1 + 1e-9))[0]
    out["nuclei_central-gap_absorbed_whole"] = away.min()
    out["nuclei_orientation_absorbed_whole"] = axes_spread(parts)
    for name, values in zip(NUCLEUS, np.array(rows, dtype=float).T, strict=True):
        pools = {"mean": values.mean(), "spread": values.std(), "q90": np.quantile(values, 0.9)}
        out |= {f"nuclei_{name}-{pool}_absorbed_whole": value for pool, value in pools.items()}
        out[f"nuclei_{name}-nearest_absorbed_centre"] = values[nearest]
        if central.any():
            out[f"nuclei_{name}-mean_absorbed_centre"] = values[central].mean()
            out[f"nuclei_{name}-max_absorbed_centre"] = values[central].max()
            if not central.all():
                out[f"nuclei_{name}-mean_absorbed_contrast"] = values[central].mean() - values[~central].mean()
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
