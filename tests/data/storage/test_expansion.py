"""Files from other people expand to at most 100 times their size, and reading stops there."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import unpack_archive
from histoblend.data.storage import expansion
from histoblend.data.storage.expansion import UnpackedFile, read_array, read_json, read_zip
from tests.data.sources.test_archives import GOOD, tar_entry, tarred, zipped

PACKERS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@pytest.fixture
def peak():
    """A function that returns the most memory that was used, in bytes."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_compressed_file_is_read_as_it_was(pack):
    content = np.random.default_rng(0).bytes(300_000)
    with UnpackedFile("a", io.BytesIO(pack(content))) as file:
        assert file.compressed
        assert file.read(100_000) + file.read(2**20) == content
        assert file.tell() == 300_000


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_reading_stops_at_the_bound(pack, peak):
    bomb = pack(bytes(40_000_000))
    before = peak()
    file = UnpackedFile("a", io.BytesIO(bomb))
    for _ in range(9):
        file.read(2**20)
    with pytest.raises(InputError, match=r"^a: expected to expand to at most 10000000 bytes \(100 times its size\)"):
        file.read(2**20)
    with pytest.raises(InputError, match="expected to expand to at most"):
        UnpackedFile("a", io.BytesIO(bomb)).seek(20_000_000)
    with pytest.raises(InputError, match="headers of at most 1048576 bytes"):
        UnpackedFile("a", io.BytesIO(bomb)).read()
    assert peak() - before < 12_000_000


def pax(name, headers):
    entry = tarfile.TarInfo(name)
    entry.pax_headers = headers
    return entry


def with_global_header(path, headers):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
        file.addfile(tarfile.TarInfo("a"))
    return path


def deep(levels):
    return "/".join("a" * levels) + "/b"


HOSTILE = {
    "long header": (lambda p: tarred(p, {pax("a", {"comment": "1" * 2**21}): b""}), "headers of at most 16384 bytes"),
    "long header in gzip": (
        lambda p: tarred(p, {pax("a", {"comment": "1" * 2**21}): b""}, "w:gz"), "headers of at most 16384 bytes"),
    "long name": (lambda p: tarred(p, {"a" * 2**21: b""}), "headers of at most 16384 bytes"),
    "many headers": (
        lambda p: tarred(p, {pax(f"{n}", {"comment": "x" * 15_000}): b"" for n in range(700)}, "w:gz"),
        "expected to expand to at most 10000000 bytes"),
    "many records": (lambda p: tarred(p, {pax("a", {f"k{n}": "x" for n in range(101)}): b""}), "more than 100 records"),
    "records for all": (lambda p: with_global_header(p, {f"k{n}": "x" for n in range(101)}), "more than 100 records"),
    "deep folders": (lambda p: zipped(p, {deep(65): b""}), "is more than 64 folders deep"),
    "deep folders in tar": (lambda p: tarred(p, {deep(65): b""}), "is more than 64 folders deep"),
    "names": (
        lambda p: zipped(p, {f"{n}{'a' * 60_000}": b"" for n in range(20)}), "at most 1000000 characters in all names"),
    "parents": (
        lambda p: zipped(p, {f"{n}{'a' * 900}/{deep(60)}": b"" for n in range(20)}), "characters in all names"),
    "directory": (lambda p: zipped(p, {f"{n}{'a' * 60_000}": b"" for n in range(35)}), "headers of at most 2000000"),
    "bzip2 in zip": (lambda p: zipped(p, {"a": bytes(10**6)}, zipfile.ZIP_BZIP2), "in another way than deflate"),
    "lzma in zip": (lambda p: zipped(p, {"a": bytes(10**6)}, zipfile.ZIP_LZMA), "in another way than deflate"),
    "sparse": (lambda p: tarred(p, {pax("a", {"GNU.sparse.size": "99999999999", "GNU.sparse.map": "0,0"}): b""}),
               "device or sparse"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_expands_is_refused(name, tmp_path, monkeypatch):
    make, message = HOSTILE[name]
    monkeypatch.setattr("histoblend.data.sources.archives.MAX_NAMES", 10**6)
    monkeypatch.setattr("histoblend.data.sources.archives.MAX_DIRECTORY", 2 * 10**6)
    archive = make(tmp_path / "archive")
    with pytest.raises(InputError, match=message):
        unpack_archive(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_deep_folders_up_to_the_limit_are_unpacked(tmp_path):
    for pack in (zipped, tarred):
        unpack_archive(pack(tmp_path / "archive", GOOD | {deep(64): b"1"}), tmp_path / pack.__name__)
        assert (tmp_path / pack.__name__ / deep(64)).read_bytes() == b"1"


def test_entries_of_a_tar_file_are_not_all_kept(tmp_path, peak):
    """Each has a copy of the records of all: 100 here, and 6 MB if all were kept."""
    path = tmp_path / "archive"
    records = {f"k{n}": "x" for n in range(100)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=records) as file:
        for number in range(600):
            file.addfile(tar_entry(f"{number}", tarfile.REGTYPE))
    before = peak()
    assert len(unpack_archive(path, tmp_path / "target")) == 600
    assert peak() - before < 4_000_000


def members(packing=zipfile.ZIP_DEFLATED, **contents):
    return zipped(io.BytesIO(), contents, packing).getvalue()


def test_a_zip_file_in_memory_is_read_completely():
    contents = {"a": b"1", "b": np.random.default_rng(0).bytes(3 * 2**20)}
    assert read_zip("x", members(zipfile.ZIP_STORED, **contents)) == contents


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (members(a=bytes(30_000_000)), r"at most 10000000 bytes \(100 times its size\); got at least 30000000"),
        (members(**{f"{n}": bytes(1_000_000) for n in range(11)}), "got at least 11000000"),
        (members(zipfile.ZIP_BZIP2, a=b"1"), "packed by deflate; got another way: a"),
        (members(zipfile.ZIP_LZMA, a=b"1"), "packed by deflate; got another way: a"),
        (members(a=b"1", b=b"2").replace(b"b", b"a"), "every member once; got one twice"),
        (members(a=b"abc").replace(b"PK\5\6", b"PK\5\7"), "expected a zip archive"),
        (b"", "expected a zip archive"),
    ],
    ids=["one", "many", "bzip2", "lzma", "twice", "cut", "empty"],
)
def test_a_zip_file_that_expands_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        read_zip("x", content)


def test_json_is_read_up_to_its_depth():
    def nested(levels):
        return json.dumps({"a": json.loads("[" * levels + "]" * levels)}).encode()

    assert read_json("x", nested(99))["a"]
    for content in (nested(100), b'{"a":' * 101 + b"1" + b"}" * 101, b'{"a":' * 100_000):
        with pytest.raises(InputError, match=r"expected JSON nested at most 100 levels deep|expected JSON; got"):
            read_json("x", content)


def array(value):
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def stating(shape, dtype="<f8", content=b"12345678"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


@pytest.mark.parametrize(
    "value", [np.arange(6.0).reshape(2, 3), np.array(["a", "bc"]), np.float32(3), np.zeros((0, 3))]
)
def test_an_array_is_read_as_it_was(value):
    np.testing.assert_array_equal(read_array("x", array(value)), value)


@pytest.mark.parametrize(
    "content",
    [
        stating((2**40,)), stating((2**32, 2**32)), stating((-1,)), stating((-1, -1)), stating((10**12,), "|V0", b""),
        stating((2,), content=b"1234567812345678more"), stating((1,), "|O"), b"\x93NUMPY\x09\0", b"",
    ],
)  # fmt: skip
def test_an_array_that_states_another_size_is_refused(content, peak):
    before = peak()
    with pytest.raises(InputError, match="expected an array of numbers"):
        read_array("x", content)
    assert peak() - before < 10**6


def test_one_rule_gives_the_bound():
    assert expansion.expansion_limit(10) == 10**7
    assert expansion.expansion_limit(10**6) == 10**8
