"""Time stain normalisation by slide against the plain way: numpy on each patch's densities, a patch at a time.

Run from the repository's root: ``python -m benchmarks.slide_stain``. Checks first that both give the same pixels.
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
    """The patches of a slide, each brought to the reference by itself."""
    (mean, spread), (wanted, width) = stains, REFERENCE
    least = np.maximum((0.15 - mean) * width / spread + wanted, 0.02)
    out = []
    for patch in patches:
        density = np.round(-np.log10((patch + 1.0) / 256), 4)
        moved = np.maximum((density - mean) * (width / spread) + wanted, least)
        moved = np.where(density < 0.15, density / 0.15 * least, moved)
        out.append(np.clip(np.rint(256 * 10**-moved - 1), 0, 255).astype(np.uint8))
    return np.stack(out)


def main():
    """Check, then print what both ways take a patch, and their ratio."""
    few = np.stack([pictures.tissue(seed, SIDE, SIDE, nuclei=SIDE * SIDE // 512) for seed in range(16)])
    patches = np.resize(few, (PATCHES, *few.shape[1:]))
    slides = np.full(PATCHES, "one", dtype=object)

    def ours():
        return normalise_by_slide(patches, stains_of(stain_sums(patches), slides, SIDE * SIDE))

    def plain():
        return plain_normalise(patches, plain_stains(patches))

    apart = np.abs(ours().astype(int) - plain())
    # Rounding of sums may move a level that lies between two.
    assert apart.max() <= 1, apart.max()
    assert (apart > 0).mean() < 1e-4, (apart > 0).mean()
    fast, slow = seconds(ours) / PATCHES * 1e3, seconds(plain, repeats=1) / PATCHES * 1e3
    print(f"plain {slow:.2f} ms a patch, kernels {fast:.3f} ms: {slow / fast:.0f} times")


if __name__ == "__main__":
    main()
