"""Downloads from a local server that truncates, stalls, alters a byte and refuses; and a fake Kaggle client."""

import hashlib
import os
import stat
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources import download
from histoblend.data.sources.download import COMPETITION, PCAM, Published, Resuming, download_files, download_kaggle

CONTENT = np.random.default_rng(0).bytes(400_000)
FILE = Published("big.bin", hashlib.md5(CONTENT).hexdigest(), len(CONTENT))  # noqa: S324


class Handler(BaseHTTPRequestHandler):
    """Serve CONTENT; the script says how each next request is answered, and an empty script serves normally."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        range_header = self.headers.get("Range")
        server.ranges.append(range_header)
        action = server.script.pop(0) if server.script else "serve"
        start = int(range_header.removeprefix("bytes=").rstrip("-")) if range_header else 0
        if isinstance(action, int):
            self.answer(action, b"no")
            return
        content = server.content
        tag = server.tag and server.tag.format(hashlib.md5(content).hexdigest())  # noqa: S324
        if tag and self.headers.get("If-Range", tag) != tag and action != "mix":
            start = 0
        if action == "changed":
            content = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start and action != "whole" else 200)
        start = 0 if action == "whole" else start
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        if action in ("cut", "stall"):
            self.wfile.write(content[start : start + 150_000])
            self.wfile.flush()
            if action == "stall":
                server.stalled.wait(5)
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Print nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.script, http_server.ranges, http_server.content, http_server.stalled = (
        [],
        [],
        CONTENT,
        threading.Event(),
    )
    http_server.tag = ""
    http_server.url = f"http://127.0.0.1:{http_server.server_port}/files"
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield http_server
    http_server.stalled.set()
    http_server.shutdown()
    http_server.server_close()
    thread.join()


def quick(part):
    return Resuming(part, timeout_s=0.2, tries=3, pause_s=0.001)


def get(server, folder, file=FILE, **options):
    return download_files((file,), folder, mirror=server.url, downloader=quick, **options)


def test_a_file_is_downloaded_and_its_bytes_are_counted(server, tmp_path):
    counted = []
    (path,) = get(server, tmp_path / "new" / "folder", progress=lambda name, count: counted.append((name, count)))
    assert path.read_bytes() == CONTENT
    assert {name for name, _ in counted} == {"big.bin"}
    assert sum(count for _, count in counted) == len(CONTENT)
    assert sorted(os.listdir(path.parent)) == ["big.bin"]


def test_an_existing_file_is_checked_and_not_downloaded_again(server, tmp_path):
    get(server, tmp_path)
    get(server, tmp_path)
    assert server.ranges == [None]
    (tmp_path / "big.bin").write_bytes(b"damaged")
    get(server, tmp_path)
    assert server.ranges == [None, None]
    assert (tmp_path / "big.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("action", ["cut", "stall"])
def test_an_interrupted_download_is_resumed(server, tmp_path, action):
    server.script = [action, action]
    (path,) = get(server, tmp_path)
    assert path.read_bytes() == CONTENT
    starts = [int(header.removeprefix("bytes=").rstrip("-")) for header in server.ranges[1:]]
    assert server.ranges[0] is None
    assert 0 < starts[0] <= 150_000 < starts[1] <= 300_000


def test_another_run_resumes_too(server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(CONTENT[:123_456])
    get(server, tmp_path)
    assert server.ranges == ["bytes=123456-"]


@pytest.mark.parametrize(
    ("tag", "address", "new", "script", "resumed"),
    [
        ('"{}"', "/a", CONTENT, ["serve"], [True]),
        ('"{}"', "/a", CONTENT[::-1], ["serve"], [True]),  # asked for, and refused by If-Range
        ('"{}"', "/a", CONTENT[:1000], ["serve"], [True]),
        ('"{}"', "/a", CONTENT[::-1], ["mix", "serve"], [True, False]),
        ('"{}"', "/b", CONTENT[::-1], ["serve"], [False]),
        ('W/"{}"', "/a", CONTENT[::-1], ["serve"], [False]),
        ("", "/a", CONTENT[::-1], ["serve"], [False]),
    ],
    ids=["same", "changed", "shorter", "server ignores If-Range", "address", "weak tag", "no tag"],
)
def test_two_versions_of_a_file_are_never_mixed(server, tmp_path, tag, address, new, script, resumed):
    def resuming():
        return Resuming(tmp_path / "x.part", timeout_s=0.2, tries=2, pause_s=0.001, same_version=True)

    server.tag, server.script = tag, ["cut", 503, 503]
    kept = "0" if tag != '"{}"' else r"1\d{5}"
    with pytest.raises(InputError, match=rf"503 .* {kept} bytes are kept"):
        resuming()(f"{server.url}/a", tmp_path / "x", None)
    server.content, server.script, server.ranges[:] = new, script, []
    resuming()(f"{server.url}{address}", tmp_path / "x", None)
    assert (tmp_path / "x").read_bytes() == new
    assert [bool(header) for header in server.ranges] == resumed
    assert os.listdir(tmp_path) == ["x"]


def test_a_complete_but_unchecked_download_is_not_repeated(server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(CONTENT)
    (path,) = get(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_discarded(server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(CONTENT + b"more")
    (path,) = get(server, tmp_path)
    assert path.read_bytes() == CONTENT


def test_without_support_for_ranges_the_download_starts_over(server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(b"x" * 1000)
    server.script = ["whole"]
    (path,) = get(server, tmp_path)
    assert path.read_bytes() == CONTENT


def test_an_error_page_does_not_replace_the_downloaded_part(server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(CONTENT[:300_000])
    server.script = [200]
    with pytest.raises(
        InputError, match=r"300000 bytes are already in .*big.bin.part, but the server offers only 2 bytes"
    ):
        get(server, tmp_path)
    assert get(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.ranges == ["bytes=300000-"] * 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_refusal_is_retried(server, tmp_path, status):
    server.script = [status, status]
    (path,) = get(server, tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([403], r"/files/big.bin: expected a file; the server answered 403 Forbidden. Check the address"),
        ([404], "the server answered 404 Not Found"),
        (
            [503] * 9,
            r"was interrupted 3 times in a row \(the server answered 503 Service Unavailable\). 0 bytes are kept",
        ),
        (
            ["cut", 503, 503, 503],
            r"was interrupted 3 times .* 503 .*\. 1\d{5} bytes are kept in .*big.bin.part; run again",
        ),
        (["changed"], f"/files/big.bin: its MD5 checksum must be {FILE.md5}; got another. The file was damaged"),
    ],
    ids=["403", "404", "503", "503 after a part", "a byte changed"],
)
def test_a_permanent_fault_is_a_one_line_error(server, tmp_path, script, message):
    server.script = list(script)
    with pytest.raises(InputError, match=message) as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "big.bin").exists()
    # The files that this run left do not disturb the next one.
    server.script = []
    assert get(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_missing_server_is_reported(tmp_path, server):
    server.url = "http://127.0.0.1:9/files"
    with pytest.raises(InputError, match=r"was interrupted 3 times in a row .*refused"):
        get(server, tmp_path)


def test_too_little_space_is_reported_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(InputError, match=r"expected 8.0 GB of free space; got 0.1 GB"):
        download_files(PCAM, tmp_path, mirror=server.url)
    assert server.ranges == []


def test_there_are_nine_published_files_with_a_checksum_each():
    names = {f"camelyonpatch_level_2_split_{split}_{part}" for split in ("train", "valid", "test")
             for part in ("x.h5.gz", "y.h5.gz", "meta.csv")}  # fmt: skip
    assert {file.name for file in PCAM} == names
    assert len({file.md5 for file in PCAM}) == 9
    assert all(len(bytes.fromhex(file.md5)) == 16 for file in PCAM)


def client(folder, body):
    """Write a fake of Kaggle's client."""
    path = folder / "kaggle"
    path.write_text(f"#!{sys.executable}\nimport sys, zipfile\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_kaggles_client_is_run_and_its_archive_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    client(
        tmp_path,
        f"""
_, group, verb, option, folder, name = sys.argv
assert (group, verb, option, name) == ("competitions", "download", "-p", "{COMPETITION}")
with zipfile.ZipFile(folder + "/" + name + ".zip", "w") as file:
    file.writestr("train/a.tif", b"pixels")
    file.writestr("train_labels.csv", "id,label")
""",
    )
    assert download_kaggle(tmp_path / "data") == ["train", "train_labels.csv"]
    assert (tmp_path / "data" / "train" / "a.tif").read_bytes() == b"pixels"


ARCHIVE = f"{COMPETITION}.zip"

#: A fake client that, like the real one, resumes a shorter file and skips one of the same size, unless forced.
RESUMES = """
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("-p") + 1])
archive, whole = folder / "{archive}", Path("{whole}").read_bytes()
with open("{log}", "a") as log:
    log.write("force " if "--force" in sys.argv else "resume ")
have = archive.stat().st_size if archive.exists() and "--force" not in sys.argv else 0
with archive.open("ab" if have else "wb") as file:
    file.write(whole[have:])
"""


def whole_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train/a.tif", b"pixels" * 1000)
        file.writestr("train_labels.csv", "id,label")
    return path.read_bytes()


def altered(content):
    position = content.index(b"pixels")
    return content[:position] + b"P" + content[position + 1 :]


@pytest.mark.parametrize(
    ("remains", "modes"),
    [
        (lambda whole: whole[: len(whole) // 2], "resume"),
        (lambda whole: whole[:-10], "resume"),
        (lambda whole: altered(whole)[:5000], "resume force"),
        (altered, "resume force"),
        (lambda whole: b"<!DOCTYPE html><title>Sign in</title>", "force"),
        (lambda whole: b"", "force"),
    ],
    ids=["half", "directory cut", "half and damaged", "damaged", "error page", "empty"],
)
def test_an_incomplete_kaggle_archive_is_completed(tmp_path, monkeypatch, remains, modes):
    monkeypatch.setenv("PATH", str(tmp_path))
    whole = whole_zip(tmp_path / "whole")
    client(tmp_path, RESUMES.format(archive=ARCHIVE, whole=tmp_path / "whole", log=tmp_path / "log"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ARCHIVE).write_bytes(remains(whole))
    assert download_kaggle(tmp_path / "data") == ["train", "train_labels.csv"]
    assert (tmp_path / "data" / "train" / "a.tif").read_bytes() == b"pixels" * 1000
    assert (tmp_path / "log").read_text().split() == modes.split()


def test_an_interrupted_kaggle_download_is_resumed_by_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    whole = whole_zip(tmp_path / "whole")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ARCHIVE).write_bytes(whole[:1000])
    client(tmp_path, "sys.exit('connection reset')")
    with pytest.raises(InputError, match=r"status 1.* run again to resume"):
        download_kaggle(tmp_path / "data")
    assert (tmp_path / "data" / ARCHIVE).stat().st_size == 1000
    client(tmp_path, RESUMES.format(archive=ARCHIVE, whole=tmp_path / "whole", log=tmp_path / "log"))
    assert download_kaggle(tmp_path / "data") == ["train", "train_labels.csv"]
    assert (tmp_path / "log").read_text().split() == ["resume"]


def test_a_kaggle_archive_that_stays_damaged_is_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "page").write_bytes(b"<html>503</html>")
    client(tmp_path, RESUMES.format(archive=ARCHIVE, whole=tmp_path / "page", log=tmp_path / "log"))
    with pytest.raises(
        InputError, match=r"expected a complete zip .* from the start and the file is still damaged"
    ) as caught:
        download_kaggle(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "log").read_text().split() == ["resume", "force"]


def test_an_incomplete_archive_without_kaggles_client_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(download.sys, "executable", str(tmp_path / "python"))
    (tmp_path / ARCHIVE).write_bytes(whole_zip(tmp_path / "whole")[:1000])
    with pytest.raises(InputError, match=r"zip is incomplete or damaged.*expected Kaggle's client"):
        download_kaggle(tmp_path)


def test_an_unpacked_kaggle_archive_is_accepted_on_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    whole_zip(tmp_path / ARCHIVE)
    assert download_kaggle(tmp_path) == download_kaggle(tmp_path) == ["train", "train_labels.csv"]


def test_without_kaggles_client_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(download.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        InputError, match=r"Install it \(`.*pip install kaggle`\), get a token at .* and accept the rules"
    ):
        download_kaggle(tmp_path / "data")


def test_a_refused_client_is_explained(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    client(tmp_path, "sys.exit('403 - Forbidden')")
    with pytest.raises(InputError, match=r"status 1.*its message above. For error 401 or 403: get a token"):
        download_kaggle(tmp_path / "data")
    assert "403 - Forbidden" in capfd.readouterr().err


def test_a_manually_downloaded_archive_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with zipfile.ZipFile(tmp_path / f"{COMPETITION}.zip", "w") as file:
        file.writestr("train/a.tif", b"pixels")
    assert download_kaggle(tmp_path) == ["train"]
