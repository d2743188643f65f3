"""Names in folders: endings in any case, without files left by operating systems."""

from pathlib import Path

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import StoredTable, files_under, find_name, names_in, walk
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


@pytest.mark.parametrize(
    "index",
    [
        slice(None), slice(2, 7), np.array([5, 0, 5]), np.arange(11) % 3 == 1, (slice(None), 2), (slice(3), [2, 0]),
        (np.array([10, 1]), np.array([1])), np.empty(0, int),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_and_columns_of_a_stored_table_are_those_of_the_array(tmp_path, monkeypatch, index, order):
    array = np.asarray(np.arange(33, dtype=np.float32).reshape(11, 3), order=order)
    np.save(tmp_path / "table.npy", array)
    monkeypatch.setattr(StoredTable, "ROWS", 2)
    table = StoredTable(tmp_path / "table.npy")
    assert (len(table), table.shape, table.ndim) == (11, (11, 3), 2)
    values = table[index]
    rows, columns = index if isinstance(index, tuple) else (index, slice(None))
    np.testing.assert_array_equal(values, array[rows][:, columns])
    assert values.dtype == np.float32
    # Pages of a mapping that stays open would count as memory.
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()
