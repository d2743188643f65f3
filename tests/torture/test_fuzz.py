"""Every fuzzed reader on its seeds and on random mutations of them. Longer fuzzing is started from the command line."""

import importlib
import random
import warnings

import pytest

from tests.torture.fuzz.driver import mutate_bytes, mutate_json, survives

pytestmark = pytest.mark.torture
TIMES = {
    "images": 300,
    "tables": 150,
    "settings": 400,
    "manifests": 400,
    "weights": 600,
    "bundles": 40,
    "archives": 300,
}
SEED = 8


@pytest.mark.parametrize("name", TIMES)
def test_a_reader_accepts_or_refuses_damaged_files(name, faults):
    reader = importlib.import_module(f"tests.torture.fuzz.{name}")
    mutate = {"manifests": mutate_json, "bundles": getattr(reader, "mutate", None)}.get(name, mutate_bytes)
    seeds, rng = reader.seeds(), random.Random(SEED)  # noqa: S311 - no secret
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in [b"", *seeds, *(mutate(rng.choice(seeds), rng) for _ in range(TIMES[name]))]:
            assert survives(reader.read, content) == "", content[:200]
    tried = 1 + len(seeds) + TIMES[name]
    faults(
        f"a damaged file for the reader of {name} (seed {SEED})",
        tried,
        tried,
        "its content if still valid, else error: …",
    )
