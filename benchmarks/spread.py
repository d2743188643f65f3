"""How far numbers differ between engines, backends, precisions and runs, on one set of patches and with one seed.

Run from the repository's root::

    python -m benchmarks.spread --write reference.npz [--data runs/mine/1-patches]
    KERAS_BACKEND=jax python -m benchmarks.spread --against reference.npz --engine keras --precision float32

The first embeds patches (of a phantom, or of a prepared step) by ONNX Runtime and fine-tunes a small network on
TensorFlow, both on a CPU, and writes all that into one file. The second does the same with what is there, twice, each
time in a process of its own, and prints how far it is from the reference and how far the two times are from one
another. It needs neither ONNX Runtime nor TensorFlow, so that it runs on a machine with a GPU and another backend.
Without options the reference is made on the spot and compared with Keras.

An embedding's difference is the length of the difference of a patch's two rows, relative to the row of the reference.
What it does to a probability is told by a logistic head, fitted once on half of the slides of the reference and shown
the other half. The fine-tuned networks learn from that same half; their log-odds of the other half are compared.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from histoblend.features.networks.backend import choose_backend
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.engines import choose_engine
from histoblend.models.cnn import CnnSettings, PatchTransform, TrainablePart, lower_network
from histoblend.models.finetune import TrainingData, fine_tune, pool
from histoblend.models.heads.logistic import LogisticHead

#: Backbone and side of each embedding: the default backbone, and the one that is fine-tuned by default, at its size.
EMBEDDINGS = {"efficientnet-lite0 at 96 px": ("efficientnet-lite0", 96)}
EMBEDDINGS |= {"efficientnet-lite2 at 192 px": ("efficientnet-lite2", 192)}
#: What of a network learns: its top as on a CPU, or all of it as on a GPU.
TRAINED = ("top", "all")
TURNS = 2
COUNT, SLIDES = 384, 24

Sample = dict[str, np.ndarray]
Found = dict[str, np.ndarray]


def sample(data: Path | None, count: int) -> Sample:
    """Patches of a phantom or of a prepared step, their labels and slides, and which of them a model learns from."""
    if data is None:
        from histoblend.data.phantom.patches import phantom

        planned = phantom(count, slides=SLIDES, seed=0)
        patches, table = planned.render(0, count), planned.table
    else:
        from histoblend.data.patches import PatchSet

        prepared = PatchSet.open(data)
        rows = np.sort(np.random.default_rng(0).permutation(len(prepared.table))[:count])
        patches, table = np.array(prepared.pixels[rows]), prepared.table.iloc[rows]
    slides = np.unique(table["slide"].astype(str), return_inverse=True)[1]
    return {"patches": patches, "labels": table["label"].to_numpy(), "slides": slides, "learnt": slides % 2 == 0}


def measure(given: Sample, engine: str, precision: str) -> Found:
    """Embeddings of every patch, and log-odds of the half that the fine-tuned networks have not seen."""
    found = {}
    for name, (backbone, size) in EMBEDDINGS.items():
        compute = embedding_compute(backbone, size=size, engine=engine, precision=precision)
        found[name] = compute(given["patches"])
    for trained in TRAINED:
        found[f"fine-tuned: {trained}"] = tuned_log_odds(given, trained, engine, precision)
    # Of the engine, what computes embeddings; where that is ONNX Runtime, Keras still trains.
    chosen = choose_engine(engine, precision)
    found["by"] = np.array(f"{chosen}; training by Keras on {choose_backend()}")
    return found


def tuned_log_odds(given: Sample, trained: str, engine: str, precision: str) -> np.ndarray:
    """Fine-tune EfficientNet-Lite0 as step 5 does; log-odds of the patches that it has not learned from."""
    chosen = choose_engine(engine, precision)
    settings = CnnSettings(
        backbone="efficientnet-lite0", size=0, trained=trained, epochs=3, patience=3, precision=chosen.precision
    )
    patches = given["patches"]
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainablePart(settings, settings.shape(patches.shape[1]), settings.precision)
        network = lower_network(trainable, chosen, Path(folder))
        look = partial(PatchTransform, settings.size, settings.stain, settings.jitter, settings.seed, network)
        shown = [look(None, epoch)(patches) for epoch in range(settings.epochs)]
        plain = [look(turn, 0)(patches) for turn in range(TURNS)]
        everything = np.arange(len(patches))
        pooled = np.stack([pool(trainable, table.__getitem__, everything) for table in (plain[0], shown[0])])
        data = TrainingData(
            lambda rows, epoch: shown[epoch][rows], lambda rows, turn: plain[turn][rows],
            pooled, given["labels"], given["slides"], TURNS,
        )  # fmt: skip
        _, predict = fine_tune(settings, trainable, data, everything[given["learnt"]], Path(folder) / "training")
        return predict(everything[~given["learnt"]])


def elsewhere(place: Path, engine: str, precision: str, **environment: str) -> Found:
    """Measure in another process: what a backend chooses anew when it starts shows only between processes."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "found.npz")
        words = ["--measure", str(place), str(target), "--engine", engine, "--precision", precision]
        command = [sys.executable, "-m", "benchmarks.spread", *words]
        subprocess.run(command, env={**os.environ, **environment}, check=True)  # noqa: S603 - ourselves
        return load(target)


def load(place: Path) -> Found:
    """Arrays of a file; text, but no objects."""
    with np.load(place, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def write_reference(place: Path, data: Path | None, count: int) -> None:
    """Write patches and what the reference makes of them."""
    np.savez(place, **sample(data, count))
    # Without a GPU even where there is one: it is the reference.
    found = elsewhere(place, "onnx", "float32", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    np.savez_compressed(place, **load(place), **found)


def compare(reference: Found, once: Found, again: Found) -> list[str]:
    """Lines that say how far the two measurements are from the reference, and from one another."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = [f"reference: {reference['by']}", f"here:      {once['by']}"]
    lines += [f"{machine}; {len(reference['patches'])} patches, half of them judged", ""]
    learnt, labels, slides = (reference[name] for name in ("learnt", "labels", "slides"))
    lines.append(f"{'embedding':30s} {'largest':>9s} {'mean':>9s} {'probability':>12s} {'twice here':>11s}")
    for name in EMBEDDINGS:
        expected, found = reference[name], once[name]
        apart = distance(found, expected)
        head = LogisticHead(seed=0).fit(expected[learnt], labels[learnt], slides[learnt])
        before, after = (head.predict_proba(values[~learnt])[:, 1] for values in (expected, found))
        change, repeat = np.abs(after - before).max(), distance(again[name], found).max()
        lines.append(f"{name:30s} {apart.max():9.1e} {apart.mean():9.1e} {change:12.1e} {repeat:11.1e}")
    lines += ["", f"{'network, one seed':30s} {'log-odds':>9s} {'mean':>9s} {'probability':>12s} {'twice here':>11s}"]
    for name in (f"fine-tuned: {trained}" for trained in TRAINED):
        apart = np.abs(once[name] - reference[name])
        change, repeat = (np.abs(expit(once[name]) - expit(other[name])).max() for other in (reference, again))
        lines.append(f"{name:30s} {apart.max():9.1e} {apart.mean():9.1e} {change:12.1e} {repeat:11.1e}")
    return [*lines, "", "largest and mean over patches; probability: its largest change; twice here: the largest",
            "difference between two processes, of the embedding or, for networks, of the probability"]  # fmt: skip


def distance(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Length of each row's difference, relative to the expected row's."""
    difference = np.linalg.norm(values.astype(np.float64) - expected, axis=1)
    return np.asarray(difference / np.linalg.norm(expected.astype(np.float64), axis=1))


def main() -> None:
    """Write a reference, measure in a process of its own, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a reference and end")
    parser.add_argument("--against", type=Path, metavar="FILE", help="a reference written before")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a run's 1-patches; without it a phantom")
    parser.add_argument("--count", type=int, default=COUNT, help="patches")
    parser.add_argument("--engine", default="keras")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--measure", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        np.savez(options.measure[1], **measure(load(options.measure[0]), options.engine, options.precision))
        return
    if options.write:
        write_reference(options.write, options.data, options.count)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = options.against or Path(folder, "reference.npz")
        if not options.against:
            write_reference(place, options.data, options.count)
        twice = [elsewhere(place, options.engine, options.precision) for _ in range(2)]
        print("\n".join(compare(load(place), *twice)))


if __name__ == "__main__":
    main()
