"""Archives are unpacked unchanged, or refused before the first byte is written; never outside the target."""

import io
import stat
import struct
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import DamagedArchive, unpack_archive

GOOD = {"train/a.tif": b"pixels" * 9, "train/sub/b.tif": b"", "labels.csv": b"id,label\n"}


def zipped(path, members=GOOD, packing=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            entry = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            file.writestr(entry, content, packing)
    return path


def tarred(path, members=GOOD, mode="w"):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            entry = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path


def tar_entry(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def zip_link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "pack",
    [
        zipped,
        lambda p: zipped(p, packing=zipfile.ZIP_DEFLATED),
        tarred,
        lambda p: tarred(p, mode="w:gz"),
        lambda p: tarred(p, mode="w:xz"),
        lambda p: tarred(p, mode="w:bz2"),
    ],
    ids=["zip", "deflated zip", "tar", "tar.gz", "tar.xz", "tar.bz2"],
)
def test_files_are_unpacked_unchanged(tmp_path, pack):
    archive = pack(tmp_path / "archive")
    assert unpack_archive(archive, tmp_path / "new" / "target") == ["labels.csv", "train"]
    unpacked = {
        path.relative_to(tmp_path / "new" / "target").as_posix(): path.read_bytes()
        for path in (tmp_path / "new" / "target").rglob("*")
        if path.is_file()
    }
    assert unpacked == GOOD


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_backslashes_separate_folders(tmp_path, pack):
    members = {"train\\": b"", **{name.replace("/", "\\"): content for name, content in GOOD.items()}}
    unpack_archive(pack(tmp_path / "archive", members), tmp_path / "target")
    files = {path.relative_to(tmp_path / "target").as_posix(): path for path in (tmp_path / "target").rglob("*")}
    assert {name: path.read_bytes() for name, path in files.items() if path.is_file()} == GOOD
    with pytest.raises(InputError, match=r"member 'train/a.tif' appears twice"):
        unpack_archive(pack(tmp_path / "twice", {"train\\a.tif": b"1", "train/a.tif": b"2"}), tmp_path / "other")


BOMB = {"bomb": bytes(40_000_000)}
OUTSIDE = ["/tmp/x", "../x", "a/../../x", "..", "C:/x", "C:x", "\\\\server\\x", "a\\..\\x", "//server/x"]  # noqa: S108


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_nothing_is_written_outside(tmp_path, pack, name):
    archive = pack(tmp_path / "archive", {"good": b"1", name: b"evil"})
    with pytest.raises(InputError, match=r"has a path outside the target. Nothing was unpacked"):
        unpack_archive(archive, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: zipped(p, {zip_link("a"): b"/etc/passwd"}), "member 'a' is a link or a device"),
        (lambda p: p.write_bytes(zipped(p, {"ab": b"1"}).read_bytes().replace(b"ab", b"\0\0")), "member '' "),
        (lambda p: tarred(p, {tar_entry("a", tarfile.SYMTYPE, "/etc"): b""}), "member 'a' is a link, a device"),
        (lambda p: tarred(p, {tar_entry("a", tarfile.LNKTYPE, "/etc/passwd"): b""}), "member 'a' is a link"),
        (lambda p: tarred(p, {tar_entry("a", tarfile.FIFOTYPE): b""}), "member 'a' is a link, a device"),
        (lambda p: tarred(p, {tar_entry("a", tarfile.CHRTYPE): b""}), "member 'a' is a link, a device"),
        (lambda p: zipped(p, BOMB, zipfile.ZIP_DEFLATED), "'bomb' brings the total size to 40000000 bytes; the limit"),
        (lambda p: tarred(p, BOMB, "w:gz"), "'bomb' brings the total size to 40000000 bytes; the limit is 10000000"),
        (lambda p: tarred(p, {"a": b"1", "./a": b"2"}), "member './a' appears twice"),
        (lambda p: tarred(p, {"a/b": b"1", "a": b"2"}), "member 'a' appears twice"),
        (lambda p: tarred(p, {"a": b"1", "a/b": b"2"}), "member 'a' is both a file and a folder"),
        (lambda p: tarred(p, {".": b"1"}), "member '.' has no name"),
        (lambda p: p.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(90)), r"got a 7z archive\. Unpack it"),
        (lambda p: p.write_bytes(b"Rar!\x1a\x07\x01\0" + bytes(90)), r"got a RAR archive\. Unpack it with that"),
        (lambda p: p.write_bytes(b"not an archive"), "expected a complete zip or tar file; got: "),
        (lambda p: p.write_bytes(tarred(p, mode="w:gz").read_bytes()[:100]), "expected a complete zip or tar file"),
        (lambda p: p.write_bytes(zipped(p).read_bytes()[:-30]), "expected a complete zip or tar file"),
        (lambda p: p.write_bytes(zipped(p).read_bytes().replace(b"pixelspixels", b"pixelspixelz")), "Bad CRC-32"),
    ],
    ids=[
        "zip link", "empty name", "tar link", "hard link", "pipe", "device", "zip bomb", "tar bomb", "twice",
        "folder and file", "file and folder", "no name", "7z", "rar", "no archive", "cut tar", "cut zip", "damaged zip",
    ],
)  # fmt: skip
def test_bad_archives_leave_nothing(tmp_path, make, message):
    make(tmp_path / "archive")
    with pytest.raises(InputError, match=message):
        unpack_archive(tmp_path / "archive", tmp_path / "target")
    assert not (tmp_path / "target").exists() or not list((tmp_path / "target").iterdir())


def test_a_zip_with_false_sizes_is_refused(tmp_path):
    content = zipped(tmp_path / "archive", {"a": bytes(5000)}, zipfile.ZIP_DEFLATED).read_bytes()
    position = content.index(b"PK\x01\x02")
    altered = bytearray(content)
    struct.pack_into("<I", altered, position + 24, 7)  # the directory states 7 bytes
    (tmp_path / "archive").write_bytes(altered)
    with pytest.raises(InputError, match="expected a complete zip or tar file"):
        unpack_archive(tmp_path / "archive", tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_an_encrypted_member_is_refused(tmp_path):
    content = bytearray(zipped(tmp_path / "archive", {"a": b"1"}).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(InputError, match="member 'a' is encrypted"):
        unpack_archive(tmp_path / "archive", tmp_path / "target")


def test_existing_files_are_never_replaced(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "labels.csv").write_text("mine")
    with pytest.raises(InputError, match=r"labels.csv already exists but differs from .* 4 bytes instead of 9. Move "):
        unpack_archive(zipped(tmp_path / "archive"), tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["labels.csv"]


def test_the_total_size_is_limited(tmp_path):
    with pytest.raises(InputError, match="brings the total size to 54 bytes; the limit is 50"):
        unpack_archive(zipped(tmp_path / "archive"), tmp_path / "target", max_bytes=50)


@given(data=st.data())
@settings(max_examples=60)
def test_a_damaged_archive_is_unpacked_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("archive")
    pack = data.draw(st.sampled_from([zipped, tarred, lambda p: tarred(p, mode="w:gz")]))
    content = bytearray(pack(folder / "archive").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "archive").write_bytes(content)
    try:
        unpack_archive(folder / "archive", folder / "target")
    except InputError:
        assert not (folder / "target").exists() or not list((folder / "target").iterdir())
    assert {path.name for path in folder.iterdir()} <= {"archive", "target"}


def test_a_zip_directory_that_points_before_the_file_is_refused(tmp_path):
    archive = zipped(tmp_path / "archive")
    content = bytearray(archive.read_bytes())
    end = content.rindex(b"PK\x05\x06")
    position = int.from_bytes(content[end + 16 : end + 20], "little")
    content[end + 16 : end + 20] = (position + 1000).to_bytes(4, "little")
    archive.write_bytes(content)

    with pytest.raises(InputError, match="archive: "):
        unpack_archive(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists() or not list((tmp_path / "target").iterdir())


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_damaged_checksum_is_not_reported_as_a_disk_error(tmp_path, mode):
    path = tarred(tmp_path / "archive", mode=mode)
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content) // 2 + 20):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"expected a complete zip or tar file; got: .*Download it again"):
        unpack_archive(path, tmp_path / "target")


def test_complete_files_are_not_unpacked_again(tmp_path):
    """For example after an interruption between the moves of two folders."""
    archive, target = zipped(tmp_path / "archive"), tmp_path / "target"
    unpack_archive(archive, target)
    before = (target / "train" / "a.tif").stat().st_ino
    (target / "labels.csv").unlink()
    assert unpack_archive(archive, target) == unpack_archive(archive, target) == ["labels.csv", "train"]
    assert (target / "labels.csv").read_bytes() == GOOD["labels.csv"]
    assert (target / "train" / "a.tif").stat().st_ino == before


def test_a_partly_unpacked_folder_is_named(tmp_path):
    archive, target = zipped(tmp_path / "archive"), tmp_path / "target"
    unpack_archive(archive, target)
    (target / "train" / "sub" / "b.tif").unlink()
    with pytest.raises(InputError, match=r"train already exists but differs from archive: .*b\.tif is missing"):
        unpack_archive(archive, target)


@pytest.mark.parametrize("damage", ["cut between entries", "a damaged entry"])
def test_a_truncated_or_damaged_tar_file_is_refused(tmp_path, damage):
    content = bytearray(tarred(tmp_path / "archive").read_bytes())
    with tarfile.open(tmp_path / "archive") as file:
        last = file.getmembers()[-1].offset
    if damage == "a damaged entry":
        content[last] ^= 1  # its checksum is then wrong
    (tmp_path / "archive").write_bytes(content[:last] if damage.startswith("cut") else content)
    with pytest.raises(
        DamagedArchive, match=r"expected a complete zip or tar file; got: the end of the archive is missing"
    ):
        unpack_archive(tmp_path / "archive", tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_files_of_operating_systems_are_not_unpacked(tmp_path, pack):
    leftovers = (
        "__MACOSX/train/._a.tif",
        "__MACOSX/._train",
        ".DS_Store",
        "train/.DS_Store",
        "train/Thumbs.db",
        "._train",
    )
    archive, target = pack(tmp_path / "archive", GOOD | dict.fromkeys(leftovers, b"left")), tmp_path / "target"
    for _ in range(2):  # the second time, all files exist already
        assert unpack_archive(archive, target) == ["labels.csv", "train"]
        unpacked = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
        assert unpacked == set(GOOD)
        (target / ".DS_Store").write_bytes(b"another one")
        (target / "train" / ".DS_Store").write_bytes(b"another one")
        assert unpack_archive(archive, target) == ["labels.csv", "train"]
        (target / ".DS_Store").unlink()
        (target / "train" / ".DS_Store").unlink()


@pytest.mark.parametrize("name", ["__MACOSX/../../x", ".hidden/../../x", "/.DS_Store"])
def test_ignored_files_outside_the_target_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="has a path outside the target"):
        unpack_archive(zipped(tmp_path / "archive", GOOD | {name: b"evil"}), tmp_path / "target")


def test_the_entry_of_the_packed_folder_itself_is_ignored(tmp_path):
    members = {tar_entry("./", tarfile.DIRTYPE): b""} | {f"./{name}": content for name, content in GOOD.items()}
    assert unpack_archive(tarred(tmp_path / "archive", members), tmp_path / "target") == ["labels.csv", "train"]
