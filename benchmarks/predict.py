"""Time prediction: the fine-tuned network with fewer symmetries or 8-bit integers, and a run's bundle as a whole.

Run from the repository root: ``python -m benchmarks.predict [run] [patches]``. The network is EfficientNet-Lite2 at
192 px with ImageNet weights and a random head, on phantom patches. If the folder of an ensemble run is given, its
bundle predicts patches of the run, once as it is and once with its network as scored: 8 symmetries in float32.

The benchmark first checks that the log-odds agree. Times are core-milliseconds per patch, the best of three passes that
take turns; the bundle predicts once.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.phantom.patches import phantom
from histoblend.features.networks.engines import Engine
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.bundled_cnn import lighten_cnn
from histoblend.models.cnn import CnnCompute, CnnSettings, TrainablePart, open_cnn, store_cnn
from histoblend.pipelines.predict.in_memory import Predictor

SIDE = 192
WAYS = ((8, "float32"), (4, "float32"), (2, "float32"), (8, "int8"), (4, "int8"))
#: Smallest correlation with the log-odds of 8 symmetries in float32.
AGREEMENT = 0.98


def networks(patches: np.ndarray, folder: Path) -> dict[str, CnnCompute]:
    """The network in each way; the first is as scored."""
    settings = CnnSettings(trained="top")
    trainable = TrainablePart(settings, (SIDE, SIDE))
    model = trainable.model(np.zeros(trainable.width), np.ones(trainable.width))
    rng = np.random.default_rng(0)
    values = [*model.get_weights()[:-2], rng.normal(0, 0.1, (trainable.width, 1)), np.zeros(1)]
    whole = trainable.whole(values, np.zeros(trainable.width), np.ones(trainable.width))
    store_cnn(whole, settings, (SIDE, SIDE), Engine("onnx", "tensorflow", "float32", False), folder / "scored")
    made = {}
    for symmetries, precision in WAYS:
        copy = folder / f"{symmetries}-{precision}"
        shutil.copytree(folder / "scored", copy)
        lighten_cnn(copy, patches, symmetries=symmetries, precision=precision)
        made[f"{symmetries} symmetries, {precision}"] = open_cnn(copy)
    return made


def core_ms(function, count: int) -> tuple[float, object]:
    """Core-milliseconds per patch of a call, and its result."""
    started = time.process_time()
    result = function()
    return 1e3 * (time.process_time() - started) / count, result


def time_networks(count: int) -> None:
    """Check and time the network alone."""
    pixels = phantom(2 * count, slides=8, seed=0).render(0, 2 * count)
    patches, others = pixels[:count], pixels[count:]
    with tempfile.TemporaryDirectory() as folder:
        ways = networks(others, Path(folder))
        expected = next(iter(ways.values()))(patches)[:, 0]
        best = dict.fromkeys(ways, np.inf)
        for _ in range(3):
            for name, way in ways.items():
                ms, values = core_ms(lambda way=way: way(patches)[:, 0], count)
                best[name] = min(best[name], ms)
                agreement = np.corrcoef(values, expected)[0, 1]
                assert agreement >= AGREEMENT, f"{name} agrees to {agreement:.4f} only"
    slowest = next(iter(best.values()))
    for name, ms in best.items():
        print(f"network, {name:24s} {ms:6.1f} core-ms per patch   {slowest / ms:5.2f} times as fast")


def time_bundle(run: Path, count: int) -> None:
    """Check and time the bundle of a run, on patches of its first slides."""
    bundle = open_bundle(run / "bundle")
    stored = next(path for name in ("refitted", "model") if (path := run / "5-cnn" / name).is_dir())
    scored = {f"cnn/{path.name}": path.read_bytes() for path in stored.iterdir()}
    table = pd.read_parquet(run / "1-patches" / "patches.parquet").sort_values("slide", kind="stable").head(count)
    pixels = np.load(run / "1-patches" / "pixels.npy", mmap_mode="r")[table.index.to_numpy()]
    slides = table["slide"].tolist()
    plain = Bundle(bundle.folder, bundle.index, bundle.contents | scored)
    for title, given in (("slides known", slides), ("slides unknown", None)):
        slow, expected = core_ms(lambda given=given: Predictor(plain, n_jobs=1).predict(pixels, given), len(table))
        fast, values = core_ms(lambda given=given: Predictor(bundle, n_jobs=1).predict(pixels, given), len(table))
        agreement = values["probability"].corr(expected["probability"], method="spearman")
        assert agreement >= AGREEMENT, f"{title}: ranks agree to {agreement:.4f} only"
        print(
            f"bundle, {title:15s} {fast:6.1f} instead of {slow:.1f} core-ms per patch, {slow / fast:.2f} times as "
            f"fast; rank correlation {agreement:.4f}"
        )


def main(run: str = "", count: str = "64") -> None:
    """Time the network and, if a run is given, its bundle."""
    if run:
        time_bundle(Path(run), int(count))
    else:
        time_networks(int(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
