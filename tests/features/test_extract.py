"""Sharded extraction gives the same numbers for any shards, and resumes after an interruption."""

import os
from pathlib import Path

import numpy as np
import pytest

from histoblend.features.extract import extract_shards


def sums(patches):
    """Return two numbers that identify a patch: the sum of red, and the first blue pixel."""
    flat = patches.reshape(len(patches), -1, 3).astype(np.float32)
    return np.stack([flat[:, :, 0].sum(1), flat[:, 0, 2]], axis=1)


def infinite_when_first_pixel_is_200(patches):
    values = sums(patches)
    values[patches[:, 0, 0, 0] == 200, 1] = np.inf
    return values


class Counting:
    """Computes `sums`, counts the patches, and fails at a planted patch."""

    def __init__(self, poison=None):
        self.seen = 0
        self.poison = poison

    def __call__(self, patches):
        if self.poison is not None and (patches[:, 0, 0, 0] == self.poison).any():
            raise RuntimeError("power cut")
        self.seen += len(patches)
        return sums(patches)


@pytest.fixture
def pixels():
    patches = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), dtype=np.uint8)
    patches[:, 0, 0, 0] = np.arange(23)
    return patches


def expected(pixels):
    return np.array([[int(p[:, :, 0].sum()), int(p[0, 0, 2])] for p in pixels], dtype=np.float32)


@pytest.mark.parametrize("shard_size", [1, 4, 23, 256])
def test_any_shard_size_gives_the_same_table(tmp_path, pixels, shard_size):
    values = extract_shards(sums, pixels, tmp_path / "new", 2, shard_size=shard_size)
    np.testing.assert_array_equal(values, expected(pixels))
    assert values.dtype == np.float32
    assert isinstance(values, np.memmap)
    assert not values.flags.writeable
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["values.npy"]


@pytest.mark.parametrize("prefer", ["processes", "threads"])
@pytest.mark.parametrize("mapped", [True, False])
def test_workers_give_the_same_table_as_one_process(tmp_path, pixels, prefer, mapped):
    if mapped:
        np.save(tmp_path / "pixels.npy", pixels)
        pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    values = extract_shards(sums, pixels, tmp_path / "out", 2, shard_size=5, workers=2, prefer=prefer)
    np.testing.assert_array_equal(values, expected(pixels))


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_every_patch_once(tmp_path, pixels, workers):
    counts = []
    extract_shards(sums, pixels, tmp_path, 2, shard_size=5, workers=workers, prefer="threads", progress=counts.append)
    assert sorted(counts) == [3, 5, 5, 5, 5]


def test_a_second_call_resumes_an_interrupted_one(tmp_path, pixels):
    with pytest.raises(RuntimeError, match="power cut"):
        extract_shards(Counting(poison=11), pixels, tmp_path, 2, shard_size=5)
    assert not (tmp_path / "values.npy").exists()
    for half in (tmp_path / ".values.npy", tmp_path / "shards" / ".rows-00000010-00000015.npz"):
        half.with_name(f"{half.name}.{os.getpid()}-1.partial").write_bytes(b"half")

    again, counts = Counting(), []
    values = extract_shards(again, pixels, tmp_path, 2, shard_size=5, progress=counts.append)
    assert again.seen == 13
    assert sum(counts) == 23
    np.testing.assert_array_equal(values, expected(pixels))
    assert [path.name for path in tmp_path.iterdir()] == ["values.npy"]


def test_shards_of_another_size_are_not_confused(tmp_path, pixels):
    # the first call leaves shards of 1 row; the second needs shards of 2 rows
    with pytest.raises(RuntimeError):
        extract_shards(Counting(poison=5), pixels[:6], tmp_path, 2, shard_size=1)
    values = extract_shards(sums, pixels[:6], tmp_path, 2, shard_size=2)
    np.testing.assert_array_equal(values, expected(pixels[:6]))
    assert [path.name for path in tmp_path.iterdir()] == ["values.npy"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "unsealed"])
def test_a_damaged_shard_is_computed_again(tmp_path, pixels, damage):
    with pytest.raises(RuntimeError):
        extract_shards(Counting(poison=22), pixels, tmp_path, 2, shard_size=5)
    shard = tmp_path / "shards" / "rows-00000005-00000010.npz"
    whole = shard.read_bytes()
    if damage == "truncated":
        shard.write_bytes(whole[:-3])
    elif damage == "empty":
        shard.write_bytes(b"")
    else:
        np.savez(shard, values=np.zeros((5, 3), np.float32))
    again = Counting()
    values = extract_shards(again, pixels, tmp_path, 2, shard_size=5)
    assert again.seen == 5 + 3
    np.testing.assert_array_equal(values, expected(pixels))


def test_shards_left_after_the_table_was_written_are_removed(tmp_path, pixels):
    values = np.array(extract_shards(sums, pixels, tmp_path, 2))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "rows-00000000-00000023.npz").write_bytes(b"any")
    np.testing.assert_array_equal(extract_shards(Counting(poison=0), pixels, tmp_path, 2), values)
    assert [path.name for path in tmp_path.iterdir()] == ["values.npy"]


def test_a_finished_table_is_not_computed_again(tmp_path, pixels):
    extract_shards(sums, pixels, tmp_path, 2)
    again, counts = Counting(), []
    values = extract_shards(again, pixels, tmp_path, 2, progress=counts.append)
    assert (again.seen, counts) == (0, [23])
    np.testing.assert_array_equal(values, expected(pixels))


def test_an_infinite_value_is_reported_by_column_and_patch_row(tmp_path, pixels):
    pixels[17, 0, 0, 0] = 200
    with pytest.raises(ValueError, match=r"column 1 of patch row 17 must be finite; got inf"):
        extract_shards(infinite_when_first_pixel_is_200, pixels, tmp_path, 2, shard_size=5)
    kept = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert kept == [f"rows-{start:08d}-{start + 5:08d}.npz" for start in (0, 5, 10)]


def test_an_error_in_a_worker_process_reaches_the_caller(tmp_path, pixels):
    pixels[17, 0, 0, 0] = 200
    with pytest.raises(ValueError, match="patch row 17"):
        extract_shards(infinite_when_first_pixel_is_200, pixels, tmp_path, 2, shard_size=5, workers=2)


def test_a_failed_write_leaves_no_file(tmp_path, pixels, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        extract_shards(sums, pixels, tmp_path, 2)
    assert list(tmp_path.rglob("*.*")) == []


def test_no_patches_give_an_empty_table(tmp_path, pixels):
    values = extract_shards(sums, pixels[:0], tmp_path, 2, workers=2)
    assert values.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixels": np.zeros((2, 4, 4), np.uint8)}, ValueError, r"shape \(n, height, width, 3\); got \(2, 4, 4\)"),
        ({"pixels": np.zeros((2, 4, 4, 3), np.float32)}, TypeError, "must be uint8.*got float32"),
        ({"width": 3}, ValueError, r"return shape \(23, 3\); got \(23, 2\)"),
        ({"width": 0}, ValueError, "width must be at least 1; got 0"),
        ({"workers": 0}, ValueError, "workers must be a positive number, or -1 for one per core"),
        ({"shard_size": 0}, ValueError, "shard_size must be at least 1; got 0"),
        ({"compute": lambda p: sums(p).astype(np.float64)}, TypeError, "return float32; got float64"),
    ],
)
def test_invalid_arguments_are_rejected(tmp_path, pixels, change, error, message):
    arguments = {"compute": sums, "pixels": pixels, "folder": Path(tmp_path), "width": 2} | change
    with pytest.raises(error, match=message):
        extract_shards(**arguments)
