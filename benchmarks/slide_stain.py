"""Time stain normalisation by slide against NumPy on the densities of one patch after another.

Run from the repository root: ``python -m benchmarks.slide_stain``. The benchmark first checks that both give the same
pixels.
"""

import numpy as np

from benchmarks.handcrafted import seconds
from histoblend.features.slide_stain import REFERENCE, normalise_by_slide, stain_sums, stains_of
from tests.oracles import pictures

PATCHES = 512
SIDE = 96


def plain_stains(patches):
    """Mean and spread of each channel's density over a slide's tissue, (2, 3)."""
    count, first, second = 0, np.zeros(3), np.zeros(3)
    for patch in patches:
        density = np.round(-np.log10((patch.reshape(-1, 3) + 1.0) / 256), 4)
        tissue = density[(density > 0.15).all(axis=1)]
        count, first, second = count + len(tissue), first + tissue.sum(axis=0), second + (tissue**2).sum(axis=0)
    mean = first / count
    return np.stack([mean, np.sqrt(second / count - mean**2)])


def plain_normalise(patches, stains):
    """Patches of a slide, normalised to the reference one by one."""
    (mean, spread), (target_mean, target_spread) = stains, REFERENCE
    lowest = np.maximum((0.15 - mean) * target_spread / spread + target_mean, 0.02)
    out = []
    for patch in patches:
        density = np.round(-np.log10((patch + 1.0) / 256), 4)
        normalised = np.maximum((density - mean) * (target_spread / spread) + target_mean, lowest)
        normalised = np.where(density < 0.15, density / 0.15 * lowest, normalised)
        out.append(np.clip(np.rint(256 * 10**-normalised - 1), 0, 255).astype(np.uint8))
    return np.stack(out)


def main():
    """Check, then print the time per patch of both ways, and their ratio."""
    few = np.stack([pictures.tissue(seed, SIDE, SIDE, nuclei=SIDE * SIDE // 512) for seed in range(16)])
    patches = np.resize(few, (PATCHES, *few.shape[1:]))
    slides = np.full(PATCHES, "one", dtype=object)

    def ours():
        return normalise_by_slide(patches, stains_of(stain_sums(patches), slides, SIDE * SIDE))

    def plain():
        return plain_normalise(patches, plain_stains(patches))

    difference = np.abs(ours().astype(int) - plain())
    # Rounding of sums may move a value that is halfway between two levels.
    assert difference.max() <= 1, difference.max()
    assert (difference > 0).mean() < 1e-4, (difference > 0).mean()
    fast, slow = seconds(ours) / PATCHES * 1e3, seconds(plain, repeats=1) / PATCHES * 1e3
    print(f"plain {slow:.2f} ms per patch, kernels {fast:.3f} ms per patch: {slow / fast:.0f} times as fast")


if __name__ == "__main__":
    main()
