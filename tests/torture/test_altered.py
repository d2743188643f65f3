"""Altered or truncated files are rebuilt or refused, never accepted; interrupted renames are completed."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.features.extract import extract_shards
from histoblend.models.bundle import open_bundle
from histoblend.pipelines.commands import one_step
from histoblend.pipelines.runtime.artefacts import MANIFEST, StepResult, StepSpec, file_digest, run_step
from histoblend.pipelines.runtime.resources import report_shortages
from tests.torture.disk import RESULTS, Disk, heads, run_in

pytestmark = pytest.mark.torture
SPEC = StepSpec("features", "2-features", ("data/storage/arrays.py",), {"a": 1}, {}, 0)


class InterruptedRunError(Exception):
    """Simulates a kill."""


def brightness(patches):
    return patches.mean(axis=(1, 2)).astype(np.float32)


def interrupt(count):
    if count != 3:
        raise InterruptedRunError


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
    with pytest.raises(InterruptedRunError):
        extract_shards(brightness, pixels, tmp_path / "broken", 3, shard_size=4, progress=interrupt)
    shard_name = "shards/rows-00000000-00000004.npz"
    shard = (tmp_path / "broken" / shard_name).read_bytes()
    tried = 0
    for name, content in ((shard_name, shard), ("values.npy", whole)):
        for bad in damaged(content, np.random.default_rng(1)):
            folder = tmp_path / f"again-{tried}"
            (folder / "shards").mkdir(parents=True)
            (folder / name).write_bytes(bad)
            np.testing.assert_array_equal(extract_shards(brightness, pixels, folder, 3, shard_size=4), expected)
            tried += 1
    faults("a shard of an interrupted step altered or truncated", tried, tried, "nothing: it is computed again")


def build(folder):
    (folder / "values.txt").write_text("abc")
    return StepResult(3)


def must_not_build(folder):
    raise AssertionError("built again")


def test_an_altered_step_is_rebuilt(tmp_path, faults):
    folder, _ = run_step(SPEC, tmp_path, build, rebuild=False, say=print)
    tried = 0
    for bad in damaged(b"abc", np.random.default_rng(2)):
        said = []
        (folder / "values.txt").write_bytes(bad)
        run_step(SPEC, tmp_path, build, rebuild=False, say=said.append)
        assert said == ["features: rebuilding, values.txt is missing or altered"]
        assert (folder / "values.txt").read_text() == "abc"
        tried += 1
    faults("a file of a finished step altered or truncated", tried, tried, "rebuilding, <file> is missing or altered")


def test_a_kill_between_renames_loses_nothing(tmp_path, faults):
    folder, _ = run_step(SPEC, tmp_path, build, rebuild=False, say=print)
    for name in ("2-features.partial", "2-features.old"):
        folder.rename(tmp_path / name)
        run_step(SPEC, tmp_path, must_not_build, rebuild=False, say=print)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2-features"]
    faults("killed between the renames that finish a step", 2, 2, "up to date")


def files_in(folder, pattern="*"):
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def digests_fit(run):
    """Whether every file listed in a step's manifest has the digest given there."""
    for manifest in run.glob(f"*/{MANIFEST}"):
        for name, listed in json.loads(manifest.read_text())["files"].items():
            if file_digest(manifest.parent / name) != listed:
                return False
    return True


SEED = 8


def heads_or_refusal(runs, altered):
    """Run the steps up to the heads. With a damaged manifest, its folder is overwritten only with --rebuild."""
    if altered.name != MANIFEST:
        return heads(runs)
    with contextlib.suppress(InputError):
        return heads(runs)
    with pytest.raises(InputError, match="Pass --rebuild"):
        heads(runs)
    return heads(runs, rebuild=True)


def test_any_damaged_file_of_a_finished_run_is_rebuilt(tmp_path, faults, at_length):
    expected = heads(tmp_path)
    rng = np.random.default_rng(SEED)
    names = [path for step in ("1-patches", "2-features", "4-heads") for path in files_in(tmp_path / "one" / step)]
    assert len(names) > 20
    tried = 0
    for path in names if at_length else names[3::12]:
        for bad in damaged(path.read_bytes(), rng, 1):
            path.write_bytes(bad)
            actual = heads_or_refusal(tmp_path, path)
            assert actual == expected, path
            assert digests_fit(tmp_path / "one"), path
            tried += 1
    sees = "rebuilding, <file> is missing or altered; for a damaged manifest: error: … Pass --rebuild"
    faults("each file of a finished run altered, and truncated", tried, tried, sees, SEED)


def damage_pieces(folder, rng):
    """Alter or truncate every file of unfinished steps; return their number."""
    pieces = [path for partial in folder.rglob("*.partial") for path in files_in(partial) if path.stat().st_size]
    for path in pieces:
        altered, cut = damaged(path.read_bytes(), rng, 1)
        path.write_bytes(altered if rng.random() < 0.5 else cut)
    return len(pieces)


def interrupted(run, runs, call):
    """Refuse one call that writes. Like a kill, this leaves an unfinished step, but at a known moment."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, runs, call)
        try:
            run(runs)
        except InputError:
            return True
    return False


def test_damaged_pieces_of_an_interrupted_run_are_rebuilt(tmp_path, faults, at_length):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path)
        expected = heads(tmp_path / "whole")
    rng, tried = np.random.default_rng(SEED), 0
    for call in range(20, disk.calls, 5 if at_length else 90):
        runs = tmp_path / f"broken-{call}"
        if interrupted(heads, runs, call):
            tried += damage_pieces(runs, rng)
            assert heads(runs) == expected
        shutil.rmtree(runs)
    assert tried
    faults("parts of an interrupted run altered or truncated: rows, shards, fits", tried, tried,
           "nothing: they are computed again", SEED)  # fmt: skip


NETWORK = {
    "cnn.backbone": "efficientnet-lite0",
    "cnn.weights": "random",
    "cnn.size": 32,
    "cnn.epochs": 2,
    "cnn.batch": 16,
}


def network(runs):
    """Run the steps up to the fine-tuned network; return the content of the files that must not change."""
    run = run_in(runs, NETWORK)
    with report_shortages(run.folder):
        one_step(run, "cnn")
    return {name: (run.folder / name).read_bytes() for name in (RESULTS[0], "5-cnn/predictions.parquet")}


@pytest.mark.length
def test_damaged_pieces_of_an_interrupted_network_are_rebuilt(tmp_path, faults):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, tmp_path)
        expected = network(tmp_path / "whole")
    rng, tried = np.random.default_rng(SEED), 0
    for call in rng.integers(disk.calls // 3, disk.calls, 5).tolist():
        runs = tmp_path / f"broken-{call}"
        if interrupted(network, runs, call):
            tried += damage_pieces(runs, rng)
            assert network(runs) == expected
        shutil.rmtree(runs, ignore_errors=True)
    assert tried
    fault = "parts of an interrupted fine-tuning altered or truncated: feature maps, checkpoints, log-odds"
    faults(fault, tried, tried, "nothing: they are computed again", SEED)


def test_any_file_of_a_bundle_altered_or_cut_is_refused(sound, faults, at_length):
    open_bundle(sound)
    rng, tried = np.random.default_rng(SEED), 0
    for path in files_in(sound):
        content = path.read_bytes()
        for bad in damaged(content, rng, 20 if at_length else 2):
            path.write_bytes(bad)
            with pytest.raises(InputError) as error:
                open_bundle(sound)
            tried += 1
        path.write_bytes(content)
    open_bundle(sound)
    faults(
        "a file of a bundle altered or truncated",
        tried,
        tried,
        f"error: {error.value}".replace(str(sound), "bundle"),
        SEED,
    )
