"""Time prediction: the fine-tuned network with fewer symmetries or 8-bit integers, and a run's bundle as a whole.

Run from the repository root: ``python -m benchmarks.predict [run] [patches] [run as scored]``. The network is
EfficientNet-Lite2 at 192 px with ImageNet weights and a random head, on phantom patches. If the folder of a run is
given, the command ``predict`` reads image files of the run's patches (by default 2,000) and predicts them with the
bundle's default model and with ``--model fast``, start to end; and with the bundle of a copy of the run that was made
again with ``final.symmetries=8`` and ``final.precision=float32``, if one is given. The bundle of an ensemble run also
predicts some patches in memory with its network as scored: 8 symmetries in float32.

The benchmark first checks that the log-odds agree. Times are core-milliseconds per patch, the best of three passes that
take turns; commands and bundles predict once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

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
#: Smallest rank correlation of probabilities of the default and the fast model, which are different models.
AGREEMENT_OF_MODELS = 0.8


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


def time_commands(run: Path, count: int, scored: Path | None) -> None:
    """Check and time the command with each model, from image files to a CSV file."""
    table = pd.read_parquet(run / "1-patches" / "patches.parquet").sort_values("slide", kind="stable").head(count)
    pixels = np.load(run / "1-patches" / "pixels.npy", mmap_mode="r")
    ways = {"default": (run, AGREEMENT), "fast": (run, AGREEMENT_OF_MODELS)}
    ways |= {"as scored": (scored, AGREEMENT)} if scored else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for row, patch in table["patch_id"].items():
            Image.fromarray(pixels[row]).save(folder / "images" / f"{patch}.png")
        table.rename(columns={"patch_id": "id"})[["id", "slide"]].to_csv(folder / "slides.csv", index=False)
        for title, known in (("slides known", ["--slides", folder / "slides.csv"]), ("slides unknown", [])):
            first = None
            for way, (bundle, agreed) in ways.items():
                out, before, started = folder / f"{way}-{title}.csv", os.times(), time.perf_counter()
                command = [sys.executable, "-m", "histoblend.pipelines", "predict", "--bundle", bundle / "bundle"]
                command += ["--in", folder / "images", "--out", out, *known]
                command += ["--model", "fast"] if way == "fast" else []
                subprocess.run(command, check=True)  # noqa: S603 - our own command
                seconds, used, values = time.perf_counter() - started, os.times(), pd.read_csv(out)["probability"]
                cores = used.children_user + used.children_system - before.children_user - before.children_system
                first = first or (seconds, cores, values)
                agreement = first[2].corr(values, method="spearman")
                assert agreement >= agreed, f"ranks of the default and {way} agree to {agreement:.4f} only"
                print(
                    f"command, {title}, {way:9s} {seconds:6.1f} s, {1e3 * cores / len(table):6.1f} core-ms per patch, "
                    f"{cores / first[1]:5.2f} times the default; rank correlation {agreement:.4f}"
                )


def main(run: str = "", count: str = "", scored: str = "") -> None:
    """Time the network or, if a run is given, its command and its bundle."""
    if not run:
        time_networks(int(count or 64))
        return
    time_commands(Path(run), int(count or 2000), Path(scored) if scored else None)
    if (Path(run) / "5-cnn").is_dir():
        time_bundle(Path(run), int(count or 96))


if __name__ == "__main__":
    main(*sys.argv[1:])
