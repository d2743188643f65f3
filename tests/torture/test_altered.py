"""Shards and steps with a byte altered, or cut, are made again and never read as good; broken renames are mended."""

import numpy as np
import pytest

from features.extract import extract_shards
from pipelines.artefacts import Outcome, StepSpec, run_step

pytestmark = pytest.mark.torture
SPEC = StepSpec("features", "2-features", ("data/files.py",), {"a": 1}, {}, 0)


class BrokenOffError(Exception):
    """Stands for a kill."""


def brightness(patches):
    return patches.mean(axis=(1, 2)).astype(np.float32)


def break_off(count):
    if count != 3:
        raise BrokenOffError


def damaged(content, rng, times=12):
    for _ in range(times):
        altered = bytearray(content)
        altered[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        yield bytes(altered)
        yield content[: rng.integers(len(content))]


def test_a_damaged_shard_is_computed_again(tmp_path, faults):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    expected = np.array(extract_shards(brightness, pixels, tmp_path / "whole", 3, shard_size=3))
    whole = (tmp_path / "whole" / "values.npy").read_bytes()
    with pytest.raises(BrokenOffError):
        extract_shards(brightness, pixels, tmp_path / "broken", 3, shard_size=4, progress=break_off)
    shard = (tmp_path / "broken" / "shard-00000.npy").read_bytes()
    tried = 0
    for name, content in (("shard-00000.npy", shard), ("values.npy", whole)):
        for bad in damaged(content, np.random.default_rng(1)):
            folder = tmp_path / f"again-{tried}"
            folder.mkdir()
            (folder / name).write_bytes(bad)
            np.testing.assert_array_equal(extract_shards(brightness, pixels, folder, 3, shard_size=4), expected)
            tried += 1
    faults("a shard of an interrupted step altered or cut", tried, tried, "nothing: it is computed again")


def build(folder):
    (folder / "values.txt").write_text("abc")
    return Outcome(3)


def unwanted(folder):
    raise AssertionError("built again")


def test_an_altered_step_is_made_again(tmp_path, faults):
    folder, _ = run_step(SPEC, tmp_path, build, rebuild=False, say=print)
    tried = 0
    for bad in damaged(b"abc", np.random.default_rng(2)):
        said = []
        (folder / "values.txt").write_bytes(bad)
        run_step(SPEC, tmp_path, build, rebuild=False, say=said.append)
        assert said == ["features: rebuilding, values.txt is missing or altered"]
        assert (folder / "values.txt").read_text() == "abc"
        tried += 1
    faults("a file of a finished step altered or cut", tried, tried, "rebuilding, <file> is missing or altered")


def test_a_kill_around_the_renames_loses_nothing(tmp_path, faults):
    folder, _ = run_step(SPEC, tmp_path, build, rebuild=False, say=print)
    for name in ("2-features.partial", "2-features.old"):
        folder.rename(tmp_path / name)
        run_step(SPEC, tmp_path, unwanted, rebuild=False, say=print)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2-features"]
    faults("killed between the renames of a finished step", 2, 2, "up to date")
