"""Stores: complete files, ranges of rows, seals, and clear errors."""

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store, StoredArray


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        memory = Store(f"memory://{tmp_path.name}")
        yield memory
        memory.remove_all()
        return
    yield Store(str(tmp_path / "store") if request.param == "path" else f"file://{tmp_path}/store")


def test_written_content_is_read(store):
    inner = store.inside("a b/ü").make()
    inner.write("x.bin", b"0123456789")
    assert inner.read("x.bin") == b"0123456789"
    assert inner.read("x.bin", 2, 5) == b"234"
    assert inner.names() == ["x.bin"]
    inner.remove("x.bin")
    inner.remove("x.bin")
    assert inner.names() == []
    with pytest.raises(FileNotFoundError):
        inner.read("x.bin")


def test_changes_of_a_sealed_file_are_noticed(store):
    content = bytes(range(200))
    name = store.make().write_sealed("part-1", ".parquet", content)
    assert store.read_sealed(name) == content
    for damaged in (content[:-1], b"", content[:100] + b"\xff" + content[101:]):
        store.write(name, damaged)
        assert store.read_sealed(name) is None
    store.remove(name)
    assert store.read_sealed(name) is None


def test_a_file_is_uploaded_once(store, tmp_path):
    path = tmp_path / "local.bin"
    path.write_bytes(b"abc")
    store.upload(path, "f/local.bin")
    assert store.inside("f").read("local.bin") == b"abc"
    path.write_bytes(b"xyz")  # same size, so not uploaded again: callers name folders by content
    store.upload(path, "f/local.bin")
    assert store.inside("f").read("local.bin") == b"abc"
    path.write_bytes(b"longer")
    store.upload(path, "f/local.bin")
    assert store.inside("f").read("local.bin") == b"longer"


def test_rows_of_an_array_are_read_by_ranges(store, tmp_path):
    values = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(7, 4, 3)
    np.save(tmp_path / "v.npy", values)
    store.upload(tmp_path / "v.npy", "v.npy")
    array = StoredArray.find(store, "v.npy")
    assert array.shape == (7, 4, 3)
    for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
        np.testing.assert_array_equal(array.rows(start, stop), values[start:stop])


def test_a_cut_or_invalid_array_is_refused(tmp_path):
    store = Store(str(tmp_path))
    np.save(tmp_path / "v.npy", np.zeros((10, 100), np.float32))
    array = StoredArray.find(store, "v.npy")
    (tmp_path / "v.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:-1])
    with pytest.raises(OSError, match="the file is too short"):
        array.rows(5, 10)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("objects.npy", "text.npy"):
        with pytest.raises(InputError, match=r"expected an array of numbers"):
            StoredArray.find(store, name)


def test_a_store_is_checked_with_a_test_file(store):
    name = store.check()
    assert store.sees(name)
    store.remove(name)
    assert not store.sees(name)


@pytest.mark.parametrize("url", ["nowhere://x", "/proc/none/such"])
def test_an_unusable_store_is_an_input_error(url):
    with pytest.raises(InputError, match=r"engine\.store must be"):
        Store(url).check()


def test_a_late_writer_does_not_recreate_a_removed_folder(tmp_path):
    store = Store(str(tmp_path / "parts")).make()
    store.write("a", b"1")
    store.remove_all()
    with pytest.raises(FileNotFoundError):
        store.write("b", b"2")
    assert list(tmp_path.iterdir()) == []
    store.remove_all()
