"""Measure how far results differ between engines, backends, precisions and runs, with the same patches and seed.

Run from the repository root::

    python -m benchmarks.spread --write reference.npz [--data runs/mine/1-patches]
    KERAS_BACKEND=jax python -m benchmarks.spread --against reference.npz --engine keras --precision float32

The first command writes a reference file. It embeds patches (of a phantom or of a prepared step) with ONNX Runtime and
fine-tunes a small network with TensorFlow, both on a CPU. The second command does the same with the given engine and
backend, twice, in separate processes. It prints the differences from the reference and between the two repetitions. It
needs neither ONNX Runtime nor TensorFlow, so it runs on a machine with a GPU and another backend. Without options, the
reference is computed first and then compared with Keras.

The difference of an embedding is the norm of the difference between a patch's two rows, relative to the norm of the
reference row. Its effect on probabilities is measured with a logistic head, which is fitted on half of the reference's
slides and applied to the other half. The fine-tuned networks are trained on the same half, and their log-odds for the
other half are compared.
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

#: Backbone and image size of each embedding: the default backbone, and the default for fine-tuning.
EMBEDDINGS = {"efficientnet-lite0 at 96 px": ("efficientnet-lite0", 96)}
EMBEDDINGS |= {"efficientnet-lite2 at 192 px": ("efficientnet-lite2", 192)}
#: Trained part of the network: its top, as on a CPU, or all of it, as on a GPU.
TRAINED = ("top", "all")
TURNS = 2
COUNT, SLIDES = 384, 24

Sample = dict[str, np.ndarray]
Results = dict[str, np.ndarray]


def sample(data: Path | None, count: int) -> Sample:
    """Patches of a phantom or of a prepared step, with labels, slides and whether they are used for training."""
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


def measure(given: Sample, engine: str, precision: str) -> Results:
    """Embeddings of all patches, and log-odds of the half on which the networks were not trained."""
    results = {}
    for name, (backbone, size) in EMBEDDINGS.items():
        compute = embedding_compute(backbone, size=size, engine=engine, precision=precision)
        results[name] = compute(given["patches"])
    for trained in TRAINED:
        results[f"fine-tuned: {trained}"] = tuned_log_odds(given, trained, engine, precision)
    # The engine computes embeddings. Training always uses Keras.
    chosen = choose_engine(engine, precision)
    results["by"] = np.array(f"{chosen}; training by Keras on {choose_backend()}")
    return results


def tuned_log_odds(given: Sample, trained: str, engine: str, precision: str) -> np.ndarray:
    """Fine-tune EfficientNet-Lite0 as step 5 does; return log-odds of the patches not used for training."""
    chosen = choose_engine(engine, precision)
    settings = CnnSettings(
        backbone="efficientnet-lite0", size=0, trained=trained, epochs=3, patience=3, precision=chosen.precision
    )
    patches = given["patches"]
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainablePart(settings, settings.shape(patches.shape[1]), settings.precision)
        network = lower_network(trainable, chosen, Path(folder))
        transform = partial(PatchTransform, settings.size, settings.stain, settings.jitter, settings.seed, network)
        augmented = [transform(None, epoch)(patches) for epoch in range(settings.epochs)]
        plain = [transform(turn, 0)(patches) for turn in range(TURNS)]
        everything = np.arange(len(patches))
        pooled = np.stack([pool(trainable, table.__getitem__, everything) for table in (plain[0], augmented[0])])
        data = TrainingData(
            lambda rows, epoch: augmented[epoch][rows], lambda rows, turn: plain[turn][rows],
            pooled, given["labels"], given["slides"], TURNS,
        )  # fmt: skip
        _, predict = fine_tune(settings, trainable, data, everything[given["learnt"]], Path(folder) / "training")
        return predict(everything[~given["learnt"]])


def measure_in_process(path: Path, engine: str, precision: str, **environment: str) -> Results:
    """Measure in another process, because some differences appear only when a backend starts again."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "results.npz")
        arguments = ["--measure", str(path), str(target), "--engine", engine, "--precision", precision]
        command = [sys.executable, "-m", "benchmarks.spread", *arguments]
        subprocess.run(command, env={**os.environ, **environment}, check=True)  # noqa: S603 - ourselves
        return load(target)


def load(path: Path) -> Results:
    """Load the arrays of a file, without unpickling objects."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def write_reference(path: Path, data: Path | None, count: int) -> None:
    """Write the patches and the reference results."""
    np.savez(path, **sample(data, count))
    # The reference never uses a GPU.
    results = measure_in_process(path, "onnx", "float32", KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="-1")
    np.savez_compressed(path, **load(path), **results)


def compare(reference: Results, once: Results, again: Results) -> list[str]:
    """Describe the differences of two measurements from the reference, and from each other, as lines of text."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines = [f"reference: {reference['by']}", f"here:      {once['by']}"]
    lines += [f"{machine}; {len(reference['patches'])} patches, half of them for evaluation", ""]
    learnt, labels, slides = (reference[name] for name in ("learnt", "labels", "slides"))
    lines.append(f"{'embedding':30s} {'largest':>9s} {'mean':>9s} {'probability':>12s} {'repeated':>11s}")
    for name in EMBEDDINGS:
        expected, first_embeddings = reference[name], once[name]
        difference = distance(first_embeddings, expected)
        head = LogisticHead(seed=0).fit(expected[learnt], labels[learnt], slides[learnt])
        before, after = (head.predict_proba(values[~learnt])[:, 1] for values in (expected, first_embeddings))
        change, repeat_difference = np.abs(after - before).max(), distance(again[name], first_embeddings).max()
        lines.append(
            f"{name:30s} {difference.max():9.1e} {difference.mean():9.1e} {change:12.1e} {repeat_difference:11.1e}"
        )
    lines += ["", f"{'network, one seed':30s} {'log-odds':>9s} {'mean':>9s} {'probability':>12s} {'repeated':>11s}"]
    for name in (f"fine-tuned: {trained}" for trained in TRAINED):
        difference = np.abs(once[name] - reference[name])
        change, repeat_difference = (
            np.abs(expit(once[name]) - expit(other[name])).max() for other in (reference, again)
        )
        lines.append(
            f"{name:30s} {difference.max():9.1e} {difference.mean():9.1e} {change:12.1e} {repeat_difference:11.1e}"
        )
    return [*lines, "", "largest and mean: over patches; probability: its largest change; repeated: the largest",
            "difference between two processes, of the embedding or, for networks, of the probability"]  # fmt: skip


def distance(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Norm of each row's difference, relative to the norm of the expected row."""
    difference = np.linalg.norm(values.astype(np.float64) - expected, axis=1)
    return np.asarray(difference / np.linalg.norm(expected.astype(np.float64), axis=1))


def main() -> None:
    """Write a reference, measure in this process, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a reference and stop")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with this reference file")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a run's 1-patches folder (default: a phantom)")
    parser.add_argument("--count", type=int, default=COUNT, help="number of patches")
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
        path = options.against or Path(folder, "reference.npz")
        if not options.against:
            write_reference(path, options.data, options.count)
        repetitions = [measure_in_process(path, options.engine, options.precision) for _ in range(2)]
        print("\n".join(compare(load(path), *repetitions)))


if __name__ == "__main__":
    main()
