"""Time step 1: measures, duplicates, and the whole of prepare and audit.

Run from the repository root: ``python -m benchmarks.data [patches] [configuration data-folder]``. Measures and
duplicates are compared with plain implementations, which must give the same answers. Prepare and audit run on
``patches`` (4,000) phantom patches and on a quarter of them, to show that memory does not grow with their number.
220025 patches take minutes and 6.1 GB of disk space.
"""

import json
import subprocess
import sys
import tempfile
import time

import numpy as np
from scipy.fft import dctn

from histoblend.data.audit.duplicates import SIMILAR, near_duplicates
from histoblend.data.audit.flags import comparable
from histoblend.data.audit.measures import FREQUENCIES, measure
from histoblend.data.phantom.faults import apply_symmetry
from histoblend.data.phantom.patches import phantom
from histoblend.data.splits import components

PATCHES = 1500
PLAIN = 60
FULL = 220_025


def seconds(work):
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_vector(patch):
    """Describe one patch with SciPy: low cosine coefficients times their frequency, scaled like ours."""
    frequency = np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
    low = frequency * dctn(patch.mean(axis=2), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    return np.rint(127 * low / np.abs(low).max())


def plain_measures(patch):
    """Compute a few of the measures with NumPy."""
    blocks = patch.reshape(32, 3, 32, 3, 3).mean((1, 3))
    grey = blocks.mean(axis=2)
    clipped = ((patch == 0) | (patch == 255)).any(axis=2).mean()
    return [grey.mean(), grey.std(), (grey < 200).mean(), (blocks.max(axis=2) < 60).mean(), clipped]


def time_measures(patches):
    """Check measures against NumPy and SciPy, then time both."""
    measured = measure(patches[:PLAIN]).table()[["brightness", "contrast", "tissue", "dark", "clipped"]]
    np.testing.assert_allclose(measured, [plain_measures(patch) for patch in patches[:PLAIN]], atol=2e-3)
    vectors = np.stack([plain_vector(patch) for patch in patches[:PLAIN]])
    assert np.abs(measure(patches[:PLAIN]).vectors - vectors).max() <= 1
    plain = seconds(lambda: [(plain_vector(patch), plain_measures(patch)) for patch in patches[:PLAIN]]) / PLAIN
    ours = seconds(lambda: measure(patches)) / len(patches)
    ratio = f"{1 / plain:,.0f} with NumPy and SciPy (a third of the measures): {plain / ours:.1f} times as fast"
    print(f"measures, one core: {1 / ours:,.0f} patches/s; {ratio}")


def brute_force(vectors):
    """Compare every patch with every other in all eight orientations; return the sets of duplicates."""
    unit_vectors = vectors.reshape(len(vectors), -1).astype(np.float32)
    unit_vectors /= np.linalg.norm(unit_vectors, axis=1, keepdims=True)
    signs = 1 - 2 * (np.arange(FREQUENCIES) % 2)
    links = []
    for symmetry in range(8):
        turned = vectors.astype(np.float32)
        for _ in range(symmetry % 4):
            turned = turned.swapaxes(1, 2) * signs[:, None]
        turned = turned * signs if symmetry >= 4 else turned
        turned = turned.reshape(len(vectors), -1)
        similarity = unit_vectors @ (turned / np.linalg.norm(turned, axis=1, keepdims=True)).T
        np.fill_diagonal(similarity, 0)
        links.append(np.argwhere(similarity >= SIMILAR))
    first, second = np.concatenate(links).T
    return components(len(vectors), first, second)


def time_duplicates(patches):
    """Check the search against brute force, time both, and time the search on 220,025 patches."""
    rng = np.random.default_rng(0)
    copies = [apply_symmetry(patches[i], int(rng.integers(8))) for i in range(0, len(patches), 10)]
    noisy = (
        (np.stack(copies) * 1.02 + rng.normal(0, 1.5, (len(copies), *patches.shape[1:]))).clip(0, 255).astype(np.uint8)
    )
    measures = measure(np.concatenate([patches, noisy]))
    rows = np.flatnonzero(comparable(measures.table()))
    bits, vectors = measures.bits[rows], measures.vectors[rows]
    pairs = near_duplicates(bits, vectors, np.arange(len(rows)))
    sets = brute_force(vectors)
    assert np.array_equal(components(len(rows), pairs.first, pairs.second), sets)
    plain = seconds(lambda: brute_force(vectors))
    ours = seconds(lambda: near_duplicates(bits, vectors, np.arange(len(rows))))
    print(f"near duplicates of {len(rows):,}: {ours:.3f} s; all pairs {plain:.2f} s: {plain / ours:.0f} times as fast")
    bits = rng.integers(0, 2**63, FULL, dtype=np.uint64) << np.uint64(1)
    vectors = rng.integers(-60, 60, (FULL, FREQUENCIES, FREQUENCIES), dtype=np.int8)
    full = seconds(lambda: near_duplicates(bits, vectors, np.arange(FULL)))
    print(f"near duplicates of {FULL:,} random patches: {full:.1f} s")


def time_prepare(config, *settings):
    """Run step 1 in a separate process; return its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        options = [part for setting in settings for part in ("--set", setting)]
        command = [
            sys.executable,
            "-m",
            "histoblend.pipelines",
            "prepare",
            "--config",
            config,
            "--runs",
            folder,
            "--run",
            "b",
            *options,
        ]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
        with open(f"{folder}/b/1-patches/manifest.json", encoding="utf-8") as file:
            return json.load(file)


def main(patches: str = "4000", config: str = "", data: str = "") -> None:
    """Check, time and print."""
    images = phantom(PATCHES, slides=12, seed=0).render(0, PATCHES)
    time_measures(images)
    time_duplicates(images)
    for n in (int(patches) // 4, int(patches)):
        manifest = time_prepare("configs/phantom.toml", f"data.n={n}", "data.faults=true")
        rate = n / manifest["seconds"]
        print(f"phantom, prepare and audit of {n:,}: {rate:,.0f} patches/s, peak memory {manifest['peak_mb']:,.0f} MB")
    if config:
        manifest = time_prepare(config, f"data.path={data!r}")
        rate = manifest["rows"] / manifest["seconds"]
        print(
            f"{config}, prepare and audit of {manifest['rows']:,}: {rate:,.0f} patches/s, {manifest['peak_mb']:,.0f} MB"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
