"""PatchCamelyon's files: read as published, packed or not; official splits are kept and damage is reported."""

import gzip
import os

import h5py
import numpy as np
import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.patches import write_pixels
from histoblend.data.sources.pcam import PcamSource, content, unpack

PREFIX = "camelyonpatch_level_2_split_"
COUNTS = {"train": 12, "valid": 5, "test": 7}


def pixels_of(split, n, size=32):
    return np.random.default_rng(len(split)).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def write(folder, split, part, values, **options):
    with h5py.File(folder / f"{PREFIX}{split}_{part}.h5", "w") as file:
        file.create_dataset(part, data=values, **options)


@pytest.fixture
def folder(tmp_path):
    """The nine files of a very small PatchCamelyon."""
    for split, n in COUNTS.items():
        write(tmp_path, split, "x", pixels_of(split, n), chunks=(4, 32, 32, 3))
        write(tmp_path, split, "y", (np.arange(n, dtype=np.uint8) % 2).reshape(n, 1, 1, 1))
        slides = [f"camelyon16_{split}_{row // 3:03d}" for row in range(n)]
        table = pd.DataFrame({"coord_x": 0, "coord_y": 0, "tumor_patch": True, "wsi": slides})
        table.to_csv(tmp_path / f"{PREFIX}{split}_meta.csv")
    return tmp_path


def pack(folder):
    for path in folder.glob("*.h5"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        os.utime(path.with_name(f"{path.name}.gz"), ns=(1, path.stat().st_mtime_ns))
        path.unlink()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_all_splits_are_read_as_written(folder, packed):
    if packed:
        pack(folder)
    before = list(content(folder))
    source = PcamSource(folder, size=32)
    assert source.table["official"].tolist() == ["train"] * 12 + ["valid"] * 5 + ["test"] * 7
    assert source.table["patch_id"].iloc[[0, 11, 12, 23]].tolist() == [
        "train-000000", "train-000011", "valid-000000", "test-000006"
    ]  # fmt: skip
    assert source.table["label"].tolist() == [row % 2 for n in COUNTS.values() for row in range(n)]
    assert source.table["slide"].iloc[[0, 2, 3, 17]].tolist() == [
        "camelyon16_train_000", "camelyon16_train_000", "camelyon16_train_001", "camelyon16_test_000"
    ]  # fmt: skip
    expected = np.concatenate([pixels_of(split, n) for split, n in COUNTS.items()])
    for start, stop in [(0, 24), (3, 5), (10, 14), (11, 18), (23, 24)]:
        pixels, reasons = source.read(start, stop)
        assert reasons == {}
        np.testing.assert_array_equal(pixels, expected[start:stop])
    assert source.notes == {"official": COUNTS}
    # Unpacking must not change the content lines, or the second run would start over.
    assert list(content(folder)) == before
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_endings_match_in_any_case(folder, packed):
    expected = PcamSource(folder, size=32)
    if packed:
        pack(folder)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace(".h5", ".H5").replace(".gz", ".GZ").replace(".csv", ".CSV")))
    source = PcamSource(folder, size=32)
    pd.testing.assert_frame_equal(source.table, expected.table)
    np.testing.assert_array_equal(source.read(0, 24)[0], expected.read(0, 24)[0])
    assert len(list(content(folder))) == 6


def test_slides_are_cleaned_and_separators_recognised(folder):
    expected = PcamSource(folder, size=32).table
    for split in COUNTS:
        path = folder / f"{PREFIX}{split}_meta.csv"
        table = pd.read_csv(path, index_col=0)
        table["wsi"] = [f"{name}{chr(0xA0) * (row % 2)}" for row, name in enumerate(table["wsi"])]
        table.rename(columns={"wsi": "WSI "}).to_csv(path, sep=";")
    pd.testing.assert_frame_equal(PcamSource(folder, size=32).table, expected)


def test_the_number_of_workers_changes_nothing(folder, tmp_path):
    table, _, _ = write_pixels(PcamSource(folder, size=32), tmp_path, workers=3)
    expected = np.concatenate([pixels_of(split, n) for split, n in COUNTS.items()])
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), expected)
    assert "official" in table


def test_some_of_the_splits_are_enough(folder):
    for path in folder.glob("*train*"):
        path.unlink()
    source = PcamSource(folder, size=32)
    assert source.table["official"].tolist() == ["valid"] * 5 + ["test"] * 7
    np.testing.assert_array_equal(source.read(5, 12)[0], pixels_of("test", 7))


def test_without_meta_files_no_slide_is_known(folder):
    for path in folder.glob("*.csv"):
        path.unlink()
    assert PcamSource(folder, size=32).table["slide"].isna().all()


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def relabel(folder, values):
    write(folder, "valid", "y", values)


def link(folder):
    with h5py.File(folder / f"{PREFIX}valid_x.h5", "w") as file:
        file["x"] = h5py.ExternalLink(f"{PREFIX}test_x.h5", "x")


def without_pixels(folder):
    with h5py.File(folder / f"{PREFIX}valid_x.h5", "w") as file:
        file.create_dataset("x", (5, 32, 32, 3), np.uint8, chunks=(1, 32, 32, 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: [path.unlink() for path in f.glob("*.h5")], "expected .*train_x.h5 .*; found none. .* `make data"),
        (lambda f: (f / f"{PREFIX}valid_y.h5").unlink(), r"valid_y.h5: expected together with the split's other file"),
        (lambda f: (f / f"{PREFIX}valid_x.h5").unlink(), r"valid_x.h5: expected together with the split's other file"),
        (lambda f: (f / f"{PREFIX}valid_meta.csv").unlink(), "expected .*valid_meta.csv beside those of train, test"),
        (lambda f: (f / f"{PREFIX}valid_x.h5").write_bytes(b"no"), r"valid_x.h5: expected an HDF5 file; got"),
        (lambda f: cut(f / f"{PREFIX}valid_x.h5", 5000), r"valid_x.h5: expected an HDF5 file; got: .*truncated"),
        (lambda f: relabel(f, np.zeros((6, 1, 1, 1), np.uint8)), "x and y must hold the same number .* got 5 and 6"),
        (lambda f: relabel(f, np.full((5, 1, 1, 1), 2)), "labels must be 0 or 1; got 2 for row 0 and 4 more"),
        (lambda f: relabel(f, np.zeros((5, 1, 1, 2), np.uint8)), "one integer per patch; got 5 × 1 × 1 × 2"),
        (lambda f: relabel(f, np.zeros(5, np.float32)), "y must hold one integer per patch; got 5 float32"),
        (lambda f: write(f, "valid", "x", pixels_of("valid", 5, 16)), "x must be 5 × 32 × 32 × 3 uint8; got 5 × 16"),
        (lambda f: write(f, "valid", "x", np.zeros((5, 32, 32, 3))), "x must be .* got 5 × 32 × 32 × 3 float64"),
        (lambda f: write(f, "valid", "y", 1), "expected a dataset 'y' of stored values"),
        (link, "expected it to contain a dataset 'x'"),
        (without_pixels, "expected a dataset 'x' of stored values; got 15360 bytes of which only 0 are stored"),
        (
            lambda f: (f / f"{PREFIX}valid_meta.csv").write_text("wsi\na\nb\n"),
            "valid_meta.csv: expected 5 rows with a slide each; got 2 rows, 0 of them without a slide",
        ),
        (
            lambda f: (f / f"{PREFIX}valid_meta.csv").write_text("case\na\nb\n"),
            "valid_meta.csv: expected columns wsi; got case. Rename or add wsi",
        ),
    ],
    ids=[
        "no file", "no y", "no x", "one meta missing", "no hdf5", "truncated", "lengths", "label 2", "two labels",
        "float labels", "size", "float pixels", "scalar", "link", "nothing stored", "short meta", "no wsi",
    ],
)  # fmt: skip
def test_invalid_files_are_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message):
        PcamSource(folder, size=32)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected the folder that holds"):
        PcamSource(tmp_path / "nowhere")


def test_only_the_damaged_rows_are_lost(folder):
    path = folder / f"{PREFIX}valid_x.h5"
    write(folder, "valid", "x", pixels_of("valid", 5), chunks=(1, 32, 32, 3), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["x"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 40] = bytes(40)
    path.write_bytes(content)
    pixels, reasons = PcamSource(folder, size=32).read(10, 20)
    assert list(reasons) == [4]
    assert "not readable in camelyonpatch_level_2_split_valid_x.h5" in reasons[4]
    np.testing.assert_array_equal(pixels[[2, 3, 5, 6]], pixels_of("valid", 5)[[0, 1, 3, 4]])


@pytest.mark.parametrize("spoil", [lambda c: c[: len(c) // 2], lambda c: c[:60] + bytes(40) + c[100:], lambda c: b"no"])
def test_a_damaged_archive_is_refused_and_leaves_nothing(folder, spoil):
    pack(folder)
    path = folder / f"{PREFIX}valid_x.h5.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"valid_x.h5.gz: expected a complete gzip file; got: .*Download it again"):
        unpack(path)
    assert not path.with_suffix("").exists()
    assert not list(folder.glob(".*"))


def test_a_full_disk_is_explained(folder, monkeypatch):
    pack(folder)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(
        InputError, match=r"No space left on device. Unpack it into a folder with enough space: gunzip -c"
    ):
        PcamSource(folder, size=32)
    assert not list(folder.glob(".*"))
