"""PatchSet: pixels are streamed to disk unchanged, unreadable patches are set aside, changes are noticed."""

import hashlib
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.patches import CHUNK, PIXELS, PatchSet, drop_rows, write_pixels, write_table
from histoblend.data.splits import assign_splits
from histoblend.data.storage.arrays import StoredRows


class MemorySource:
    """Random patches; rows in ``bad`` cannot be read."""

    def __init__(self, n, bad=(), size=32):
        self.size, self.bad, self.n = size, set(bad), n
        slides = [f"s{row % 12}" for row in range(n)]
        ids = [f"p{row}" for row in range(n)]
        labels = (np.arange(n) // 12 % 2).astype(np.int8)
        self.table = pd.DataFrame({"patch_id": ids, "label": labels, "slide": pd.array(slides, dtype="string")})

    def patch(self, row):
        return np.random.default_rng(row).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)

    def read(self, start, stop):
        pixels = np.stack([self.patch(row) for row in range(start, stop)])
        return pixels, {row - start: "broken" for row in range(start, stop) if row in self.bad}


@pytest.mark.parametrize("workers", [1, 3])
def test_pixels_are_stored_unchanged(tmp_path, workers):
    source = MemorySource(2 * CHUNK + 7, bad=[0, CHUNK, 2 * CHUNK + 6])
    done = []
    table, set_aside, _ = write_pixels(source, tmp_path, workers=workers, progress=done.append)
    write_table(assign_splits(table, test_share=0.2, folds=3, seed=0), tmp_path)
    patches = PatchSet.open(tmp_path)
    kept = [row for row in range(source.n) if row not in source.bad]
    assert patches.table["patch_id"].tolist() == [f"p{row}" for row in kept]
    np.testing.assert_array_equal(patches.pixels, np.stack([source.patch(row) for row in kept]))
    assert patches.table["sha256"].iloc[3] == hashlib.sha256(source.patch(kept[3]).tobytes()).hexdigest()
    assert set_aside.to_dict("list") == {"patch_id": ["p0", f"p{CHUNK}", f"p{2 * CHUNK + 6}"], "reason": ["broken"] * 3}
    assert sum(done) == source.n


def test_strict_names_the_patch(tmp_path):
    with pytest.raises(InputError, match="p5: broken"):
        write_pixels(MemorySource(20, bad=[5]), tmp_path, strict=True)


def test_nothing_readable_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"none of 3 patches could be read \(first reason: broken\)"):
        write_pixels(MemorySource(3, bad=[0, 1, 2]), tmp_path)


def test_memory_does_not_grow_with_the_number_of_patches(tmp_path):
    peaks = []
    for n in (4 * CHUNK, 16 * CHUNK):
        tracemalloc.start()
        write_pixels(MemorySource(n), tmp_path, workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # With four times the patches only ids and hashes may grow, far below the 9 MB of additional pixels.
    assert peaks[1] - peaks[0] < 3e6


@pytest.mark.parametrize("n", [5, CHUNK, 2 * CHUNK + 7])
def test_dropped_rows_are_removed_and_the_others_unchanged(tmp_path, n):
    write_pixels(MemorySource(n), tmp_path)
    before = np.load(tmp_path / "pixels.npy")
    rows = np.array([n - 1, 0, n // 2])
    np.testing.assert_array_equal(StoredRows(tmp_path / PIXELS)[rows], before[rows])
    keep = np.random.default_rng(n).random(n) < 0.6
    keep[0] = False
    drop_rows(tmp_path, keep)
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), before[keep])
    assert (tmp_path / "pixels.npy").stat().st_size == 128 + keep.sum() * 32 * 32 * 3


def sums(patches):
    return {"sum": patches.sum((1, 2, 3))}


class CountingSource(MemorySource):
    """Records the first row of each read."""

    def read(self, start, stop):
        self.starts.append(start)
        return super().read(start, stop)


class InterruptedRunError(Exception):
    """Simulates a killed process."""


def interrupt(folder, source, after):
    """Write pixels until this number of chunks is finished."""
    finished = []

    def progress(count):
        finished.append(count)
        if len(finished) == after:
            raise InterruptedRunError

    source.starts = []
    with pytest.raises(InterruptedRunError):
        write_pixels(source, folder, workers=1, measure=sums, progress=progress)


def unharmed(folder):
    """Leave the files as they are."""


def pixel_altered(folder):
    with (folder / "pixels.npy").open("r+b") as file:
        file.seek(128 + CHUNK * 32 * 32 * 3 + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def pixels_cut(folder):
    with (folder / "pixels.npy").open("r+b") as file:
        file.truncate(128 + CHUNK * 32 * 32 * 3 + 5)


def part_altered(folder):
    path = folder / "chunks" / f"rows-{CHUNK:08d}.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "kept"),
    [(unharmed, 2), (pixel_altered, 1), (pixels_cut, 1), (part_altered, 1)],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_decoding_resumes_after_the_last_complete_chunk(tmp_path, harm, kept):
    source = CountingSource(3 * CHUNK + 5, bad=[1, CHUNK + 2])
    source.starts = []
    (tmp_path / "whole").mkdir()
    table, set_aside, measured = write_pixels(source, tmp_path / "whole", measure=sums)
    folder = tmp_path / "interrupted"
    folder.mkdir()
    interrupt(folder, source, after=2)
    harm(folder)
    source.starts = []
    again, again_set_aside, again_measured = write_pixels(source, folder, measure=sums)
    assert source.starts == [CHUNK * number for number in range(kept, 4)]
    assert (folder / "pixels.npy").read_bytes() == (tmp_path / "whole" / "pixels.npy").read_bytes()
    pd.testing.assert_frame_equal(again, table)
    pd.testing.assert_frame_equal(again_set_aside, set_aside)
    for one, other in zip(again_measured, measured, strict=True):
        np.testing.assert_array_equal(one["sum"], other["sum"])


def test_measurements_are_in_the_order_of_the_table(tmp_path):
    source = MemorySource(CHUNK + 9, bad=[2])
    table, _, measured = write_pixels(source, tmp_path, workers=3, measure=sums)
    expected = [source.patch(row).sum() for row in range(source.n) if row != 2]
    assert np.concatenate([each["sum"] for each in measured]).tolist() == expected
    assert len(table) == len(expected)


def test_an_altered_split_is_refused(tmp_path):
    table, *_ = write_pixels(MemorySource(120), tmp_path)
    table = assign_splits(table, test_share=0.2, folds=3, seed=0)
    write_table(table, tmp_path)
    table.loc[table.index[table["split"] == "test"][0], ["split", "fold"]] = ["train", 0]
    table.to_parquet(tmp_path / "patches.parquet", index=False)
    with pytest.raises(InputError, match="a slide must be in a single fold of a single split"):
        PatchSet.open(tmp_path)


def test_a_table_of_another_length_is_refused(tmp_path):
    table, *_ = write_pixels(MemorySource(60), tmp_path)
    write_table(assign_splits(table, test_share=0.2, folds=3, seed=0), tmp_path)
    np.save(tmp_path / "pixels.npy", np.zeros((59, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="59 patches and 60 rows"):
        PatchSet.open(tmp_path)


def test_the_digest_changes_with_pixels_and_labels(tmp_path):
    digests = set()
    for number, change in enumerate([{}, {"label": 1}, {"sha256": "0" * 64}]):
        folder = tmp_path / str(number)
        folder.mkdir()
        table, *_ = write_pixels(MemorySource(60), folder)
        table = assign_splits(table, test_share=0.2, folds=3, seed=0)
        for column, value in change.items():
            table.loc[0, column] = value
        write_table(table, folder)
        digests.add(PatchSet.open(folder).digest)
    assert len(digests) == 3
