"""Slow reference implementation of the features of nuclei, patch by patch, with standard libraries."""

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import ConvexHull, Voronoi
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from skimage.morphology import remove_small_holes

from tests.oracles.planes import planes, regions


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
