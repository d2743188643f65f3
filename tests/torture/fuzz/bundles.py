"""Fuzzes the reader of bundles: alters a file of a sound bundle, updates its digest, and predicts with the bundle."""

import atexit
import contextlib
import functools
import importlib
import json
import pkgutil
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np

import histoblend.models.heads.booster_trees
import histoblend.models.resampling
import histoblend.models.slide_pairs  # noqa: F401
from histoblend.data import audit, phantom
from histoblend.data.errors import InputError
from histoblend.features import handcrafted, slide_stain  # noqa: F401
from tests.torture.fuzz.driver import instrumented, main, mutate_bytes, mutate_json

# Modules with functions that Numba compiles are imported before, because it cannot compile instrumented ones.
for package in (audit, phantom, handcrafted):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")

with instrumented("histoblend", "skops"):
    from histoblend.models.blends import choose_blends
    from histoblend.models.bundle import INDEX, index_digest, open_bundle, seal_bundle
    from histoblend.models.file_checks import check_content
    from histoblend.models.heads.registry import trusted_types
    from histoblend.models.predictor import open_predictor
    from histoblend.pipelines.predict.folder import version_warnings
    from tests.models.test_bundle import archive, layer
    from tests.torture.bundles import small_bundle


PATCHES = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
ENSEMBLE = {
    "members": ["logistic_colour", "xgboost_colour"],
    "slide_means": False,
    "combiner": {"kind": "mean", "weights": [0.5, 0.5], "intercept": 0.0},
    "calibrator": {"kind": "none", "numbers": {}},
    "thresholds": {"youden": 0.5},
    "prevalence": 0.4,
}


@functools.cache
def sound() -> tuple[Path, tuple[str, ...]]:
    """A bundle and the names of its files. The first byte of an input selects the file to replace."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-files-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = small_bundle(root, "logistic", "xgboost")
    names = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return folder, (*names, "ensemble.json", "one.onnx", "one.keras", "one.npy")


def seeds() -> list[bytes]:
    import onnx

    folder, names = sound()
    graph = onnx.helper.make_graph([], "graph", [], [], [onnx.helper.make_tensor("n", 1, [1], [1.0])])
    made = {
        "ensemble.json": json.dumps({"slides": ENSEMBLE, "heat-map": None, "no-slides": ENSEMBLE}).encode(),
        "one.onnx": onnx.helper.make_model(graph).SerializeToString(),
        "one.keras": archive(layer("keras.layers", "Conv2D"), "metadata.json"),
        "one.npy": np.lib.format.magic(1, 0) + b"\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
    }
    contents = [made[name] if name in made else (folder / name).read_bytes() for name in names]
    return [bytes([number]) + content for number, content in enumerate(contents)]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Mutate the content after the first byte; JSON is mutated as JSON."""
    return content[:1] + (mutate_json if content[1:2] == b"{" else mutate_bytes)(content[1:], rng)


def read(content: bytes) -> None:
    source, names = sound()
    name, content = names[content[0] % len(names)] if content else names[0], content[1:]
    with contextlib.suppress(InputError):
        check_content(name, content, trusted_types())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "bundle")
        shutil.copytree(source, folder)
        (folder / name).write_bytes(content)
        if name == INDEX:
            with contextlib.suppress(ValueError, RecursionError, TypeError, AttributeError):
                index = json.loads(content)
                (folder / name).write_text(json.dumps({**index, "digest": index_digest(index)}))
        else:
            index = json.loads((folder / INDEX).read_text())
            seal_bundle(folder, {key: index[key] for key in index.keys() - {"files", "digest", "format"}})
        bundle = open_bundle(folder)
        for model in ("", "xgboost_colour"):
            blends = choose_blends(bundle, model)
            list(version_warnings(bundle))
            for blend in filter(None, blends):
                with open_predictor(bundle, blend.members) as predictor:
                    blend.combine(predictor(PATCHES).members)


if __name__ == "__main__":
    main("tests.torture.fuzz.bundles", read, seeds, mutate)
