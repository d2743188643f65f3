"""Names in folders: endings in any case, without files left by operating systems."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import (
    StoredRows,
    files_under,
    find_name,
    names_in,
    open_array,
    release_pages,
    walk,
)
from histoblend.data.storage.atomic import sync_tree


@pytest.fixture
def littered(tmp_path):
    """Files of ours, and some that operating systems leave behind."""
    for name in ("a.csv", "B.CSV", "deep/c.txt", ".DS_Store", "._a.csv", "Thumbs.db", "deep/desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.csv").write_text("copy")
    return tmp_path


def test_names_match_an_ending_in_any_case(littered):
    assert names_in(littered, ".csv") == names_in(littered, ".CSV") == ["B.CSV", "a.csv"]


def test_files_under_a_folder_are_ours_only(littered):
    assert files_under(littered) == ["B.CSV", "a.csv", "deep/c.txt"]


def test_files_of_operating_systems_are_not_flushed(littered, monkeypatch):
    """The Finder and Windows keep such files open or make them read-only."""
    opened = []
    monkeypatch.setattr("histoblend.data.storage.atomic.os.fsync", opened.append)
    for name in (".DS_Store", "Thumbs.db"):
        (littered / name).unlink()
        (littered / name).symlink_to("nowhere")
    sync_tree(littered)
    assert len(opened) == 3 + 2  # three files and two folders


def test_a_link_to_a_folder_is_entered_only_on_request(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert [name for name, _ in walk(tmp_path / "in")] == ["link"]
    assert [name for name, _ in walk(tmp_path / "in", lambda *_: True)] == ["link", "link/a.txt"]


def test_a_name_is_found_in_another_case_unless_there_are_two(tmp_path):
    assert find_name(tmp_path, "labels.csv") == tmp_path / "labels.csv"
    (tmp_path / "Labels.CSV").write_text("")
    assert find_name(tmp_path, "labels.csv") == tmp_path / "Labels.CSV"
    (tmp_path / "LABELS.csv").write_text("")
    with pytest.raises(InputError, match=r"expected one labels.csv; got LABELS.csv and Labels.CSV"):
        find_name(tmp_path, "labels.csv")
    (tmp_path / "labels.csv").write_text("")
    assert find_name(tmp_path, "labels.csv") == tmp_path / "labels.csv"
    assert find_name(tmp_path / "nowhere", "labels.csv") == tmp_path / "nowhere" / "labels.csv"


def test_rows_of_a_table_are_read_from_its_file(tmp_path):
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.save(tmp_path / "values.npy", values)
    table = StoredRows.find(tmp_path / "values.npy")
    assert table.shape == (20, 3)
    for start, stop in ((0, 20), (0, 1), (7, 19), (20, 20)):
        np.testing.assert_array_equal(table.rows(start, stop), values[start:stop])
    with open(table.path, "r+b") as file:
        file.truncate(os.path.getsize(table.path) - 1)
    with pytest.raises(OSError, match=r"the file is too short: .*values\.npy"):
        table.rows(10, 20)


@pytest.mark.parametrize(
    "values", [np.zeros(3), np.zeros((4, 3)).T, np.array([[None]])], ids=["1-D", "by column", "objects"]
)
def test_other_arrays_are_not_tables(tmp_path, values):
    np.save(tmp_path / "values.npy", values)
    with pytest.raises(InputError, match=r"values\.npy: expected .*Rebuild with --rebuild"):
        StoredRows.find(tmp_path / "values.npy")


def resident(path):
    """Kilobytes of a mapped file that are in the memory of this process."""
    maps = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(rf"{re.escape(str(path))}\n(?:(?!Rss).*\n)*Rss:\s+(\d+)", maps)))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux shows which pages are in memory")
def test_released_pages_leave_memory_and_keep_their_values(tmp_path):
    path = tmp_path / "values.npy"
    values = np.lib.format.open_memmap(path, "w+", np.float32, (1000, 1000))
    values[:] = 7
    assert resident(path) > 3000
    release_pages(values)
    assert resident(path) < 100
    read = open_array(path, mapped=True)
    assert (read == 7).all()
    release_pages(read)
    assert resident(path) < 100
    release_pages(np.zeros(3))  # not mapped: nothing happens
