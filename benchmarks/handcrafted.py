"""Time handcrafted features in batches against a scikit-image loop over patches.

Run from the repository root: ``python -m benchmarks.handcrafted``. The benchmark first checks that both give the same
numbers. It then shows how the cost depends on the numbers of patches and pixels, and the memory of a long table.
"""

import resource
import time

import numpy as np
from threadpoolctl import threadpool_limits

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.channels import Planes
from tests.oracles import handcrafted, pictures

PATCHES = 256
LOOPED = 6


def seconds(function, *arguments, repeats=3):
    """Return the core seconds of the best of a few runs; wall-clock time would include other work on the machine."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function(*arguments)
        times.append(time.process_time() - start)
    return min(times)


def compile_all():
    """Print the seconds of each family's first call; near 0 if kernels are cached from an earlier run."""
    tiny = np.zeros((1, 32, 32, 3), np.uint8)
    times = {"planes": seconds(lambda: (Planes(tiny).grey, Planes(tiny).stains), repeats=1)}
    for family in families.FAMILIES:
        times[family.name] = seconds(families.compute, tiny, [family.name], repeats=1)
    listed = ", ".join(f"{name} {value:.1f}" for name, value in times.items())
    print(f"first call {sum(times.values()):.1f} s ({listed})")


def compare_families(few):
    """Print one line per family: milliseconds per patch of both ways, and their ratio."""
    many = np.resize(few, (PATCHES, *few.shape[1:]))
    batches = [Planes(many[start : start + 64]) for start in range(0, PATCHES, 64)]
    shared = seconds(lambda: [(p.grey, p.stains, p.absorbed) for p in batches], repeats=1) / PATCHES * 1e3
    totals = np.array([0.0, shared])
    print(f"{'family':<14}{'columns':>8}{'loop ms':>10}{'batch ms':>10}{'ratio':>8}")
    print(f"{'shared planes':<14}{'':>8}{'':>10}{shared:>10.3f}")
    for family in families.FAMILIES:
        names = [column.name for column in family.columns]
        expected = handcrafted.table(few, family.name, names)
        np.testing.assert_allclose(families.compute(few, [family.name]), expected, rtol=1.1e-6, atol=1e-9)
        loop = seconds(handcrafted.table, few, family.name, names, repeats=1) / LOOPED * 1e3
        batch = seconds(lambda compute=family.compute: [compute(p) for p in batches]) / PATCHES * 1e3
        totals += loop, batch
        print(f"{family.name:<14}{len(names):>8}{loop:>10.2f}{batch:>10.3f}{loop / batch:>8.1f}")
    print(f"{'all':<14}{len(families.columns()):>8}{totals[0]:>10.2f}{totals[1]:>10.3f}{totals[0] / totals[1]:>8.1f}")


def show_growth(few):
    """Print the cost per patch for increasing numbers of patches, and per pixel for increasing sizes."""
    for count in (64, 128, 256):
        many = np.resize(few, (count, *few.shape[1:]))
        print(f"{count:>5} patches: {seconds(families.compute, many) / count * 1e3:.3f} ms per patch")
    for size in (96, 224, 448):
        large = np.stack([pictures.tissue(seed, size, size, nuclei=size * size // 512) for seed in range(8)])
        cost = seconds(families.compute, large) / len(large) * 1e3
        print(f"{size:>4} × {size:<4}: {cost:.3f} ms per patch, {cost / size**2 * 1e6:.0f} ns per pixel")


def show_memory(few):
    """Print how much 1,024 more patches, without memory of their own, add to the peak memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    many = np.broadcast_to(few[0], (1024, *few.shape[1:]))
    families.compute(many)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {after:.0f} MB; 1,024 more patches added {after - before:.0f} MB")


def main():
    """Run all four benchmarks."""
    few = pictures.real(LOOPED)
    if few is None:
        few = np.stack([pictures.tissue(seed) for seed in range(LOOPED)])
    compile_all()
    compare_families(few)
    show_growth(few)
    show_memory(few)


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
