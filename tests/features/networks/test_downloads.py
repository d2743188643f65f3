"""Downloads: the right bytes once, or one message that says what to do."""

import hashlib
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import h5py
import numpy as np
import pytest

from histoblend.features.networks.backend import HUB, DownloadedWeights
from histoblend.features.networks.downloads import fetch, models_folder
from histoblend.features.networks.weights import CheckpointError
from tests import ROOT

CONTENT = bytes(range(256)) * 5000
DIGEST = f"md5:{hashlib.md5(CONTENT).hexdigest()}"  # noqa: S324 - what Keras publishes


@pytest.fixture
def server():
    """A server on this machine that counts what it is asked; paths say how it fails."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/absent"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: 1000 if self.path.startswith("/cut") else None])

        def log_message(self, *arguments):
            pass

    asked = []
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()
        thread.join()


def test_a_file_is_downloaded_once_and_checked_each_time(server, tmp_path):
    url, asked = server
    weights = DownloadedWeights(f"{url}/net.h5", DIGEST, "MIT")
    path = fetch(weights, tmp_path / "models")
    assert path == tmp_path / "models" / "net.h5"
    assert path.read_bytes() == CONTENT
    assert fetch(weights, tmp_path / "models") == path
    assert asked == ["/net.h5"]


@pytest.mark.parametrize("left", [CONTENT[:-1], b"", b"<html>"], ids=["cut", "empty", "error page"])
def test_a_damaged_file_is_downloaded_again(server, tmp_path, left):
    url, asked = server
    (tmp_path / "net.h5").write_bytes(left)
    assert fetch(DownloadedWeights(f"{url}/net.h5", DIGEST, "MIT"), tmp_path).read_bytes() == CONTENT
    assert asked == ["/net.h5"]
    (tmp_path / "absent.h5").write_bytes(left)
    with pytest.raises(CheckpointError, match=r"absent\.h5: expected to download it .* 404"):
        fetch(DownloadedWeights(f"{url}/absent.h5", DIGEST, "MIT"), tmp_path)
    assert (tmp_path / "absent.h5").read_bytes() == left


def test_keras_name_for_a_file_is_kept(server, tmp_path):
    weights = DownloadedWeights(f"{server[0]}/NET.h5", f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", "MIT", "own.h5")
    assert fetch(weights, tmp_path).name == "own.h5"


def hdf5(numbers):
    with h5py.File(io.BytesIO(), "w") as file:
        file["x"] = np.arange(numbers)
        file.flush()
        return file.id.get_file_image()


@pytest.mark.parametrize("left", [b"", hdf5(1000)[:3000], b"<html>Sign in</html>"], ids=["empty", "cut", "error page"])
def test_a_file_without_published_digest_must_be_whole(server, tmp_path, left, monkeypatch):
    url, asked = server
    weights = DownloadedWeights(f"{url}/net.h5", "", "MIT")
    path, record = tmp_path / "net.h5", tmp_path / "net.h5.sha256"
    path.write_bytes(left)
    with pytest.raises(CheckpointError, match=r"net\.h5: expected complete weights; got: .* remove this one"):
        fetch(weights, tmp_path)  # a user's file
    assert path.read_bytes() == left
    assert asked == []
    record.write_text(hashlib.sha256(hdf5(1000)).hexdigest())  # a download, damaged since
    with pytest.raises(CheckpointError, match=r"net\.h5: expected a complete HDF5 file; .* Nothing was kept"):
        fetch(weights, tmp_path)  # what the server gives is none either
    assert list(tmp_path.iterdir()) == [record]
    monkeypatch.setattr("tests.features.networks.test_downloads.CONTENT", hdf5(1000))
    for _ in range(2):
        assert fetch(weights, tmp_path).read_bytes() == hdf5(1000)
    assert asked == ["/net.h5"] * 2


def test_a_file_without_published_digest_is_compared_with_the_first_download(server, tmp_path, monkeypatch):
    url, asked = server
    weights, path, record = (
        DownloadedWeights(f"{url}/net.h5", "", "MIT"),
        tmp_path / "net.h5",
        tmp_path / "net.h5.sha256",
    )
    monkeypatch.setattr("tests.features.networks.test_downloads.CONTENT", hdf5(1000))
    fetch(weights, tmp_path)
    first = hashlib.sha256(hdf5(1000)).hexdigest()
    assert record.read_text() == first
    path.write_bytes(hdf5(999))  # a whole file, altered on this machine
    with pytest.raises(CheckpointError, match=rf"its SHA-256 must be {first}, as at the first download, .* got"):
        fetch(weights, tmp_path)
    path.unlink()
    assert fetch(weights, tmp_path).read_bytes() == hdf5(1000)
    path.unlink()
    monkeypatch.setattr("tests.features.networks.test_downloads.CONTENT", hdf5(999))  # another file on the server
    with pytest.raises(CheckpointError, match=r"If you trust the new file, remove net\.h5\.sha256 instead"):
        fetch(weights, tmp_path)
    record.unlink()
    assert fetch(weights, tmp_path) == path
    assert record.read_text() == hashlib.sha256(hdf5(999)).hexdigest()
    assert asked == ["/net.h5"] * 3


def test_a_file_that_keras_downloaded_is_recorded(server, tmp_path):
    (tmp_path / "net.h5").write_bytes(hdf5(5))
    fetch(DownloadedWeights(f"{server[0]}/net.h5", "", "MIT"), tmp_path)
    assert (tmp_path / "net.h5.sha256").read_text() == hashlib.sha256(hdf5(5)).hexdigest()
    assert server[1] == []


def test_a_folder_that_is_read_only_needs_no_record(server, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("histoblend.features.networks.downloads.write_text_atomically", refuse)
    (tmp_path / "net.h5").write_bytes(hdf5(5))
    assert fetch(DownloadedWeights(f"{server[0]}/net.h5", "", "MIT"), tmp_path) == tmp_path / "net.h5"


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("absent.h5", DIGEST, "404"),
        ("cut.h5", "", "1000 bytes read, 1279000 more expected"),
        ("net.h5", f"md5:{'0' * 32}", "expected md5:0{32} but got .* Nothing was kept"),
    ],
    ids=["missing", "cut", "other"],
)
def test_a_download_that_fails_leaves_nothing(server, tmp_path, path, digest, message):
    with pytest.raises(CheckpointError, match=message):
        fetch(DownloadedWeights(f"{server[0]}/{path}", digest, "MIT"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/net_notop.h5"
        with pytest.raises(CheckpointError) as raised:
            fetch(DownloadedWeights(url, DIGEST, "MIT"), tmp_path / "models")
    message = str(raised.value)
    assert message.startswith(f"net_notop.h5: expected to download it from {url}; got: ")
    assert "Connection refused. Connect to the internet" in message
    assert f"put that file into {tmp_path / 'models'} by hand" in message
    assert 'a backbone that needs no download, such as "efficientnet-lite2"' in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/models: expected a folder to keep net\.h5 in; got: .*KERAS_HOME"):
        fetch(DownloadedWeights("http://127.0.0.1:9/net.h5", DIGEST, "MIT"), tmp_path / "file" / "models")


def test_files_lie_where_keras_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "models"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert models_folder() == tmp_path / ".keras" / "models"


VIT = ROOT / "tests" / "fixtures" / "vits" / "timm-plain.safetensors"
GATED = DownloadedWeights(f"{HUB}/owner/model/resolve/main/model.safetensors", "", "MIT", "vit.safetensors", gated=True)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for Hugging Face: it asks for a token, sends files from another address, and breaks off once."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Authorization"], self.headers["Range"]))
            if self.path.startswith("/owner/"):
                allowed = self.headers["Authorization"] == "Bearer secret"
                self.send_response(302 if allowed else 401)
                self.send_header("Location", f"http://localhost:{self.server.server_port}/stored")  # another host
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = content_of.pop(0) if len(content_of) > 1 else content_of[0]
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            begin = int((self.headers["Range"] or "bytes=0-")[6:-1]) if self.headers["If-Range"] in (None, tag) else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.send_header("ETag", tag)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[begin : None if begin else 70_000])
            if not begin:
                self.connection.close()

        def log_message(self, *arguments):
            pass

    asked, content_of = [], [VIT.read_bytes()]
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setattr("histoblend.features.networks.downloads.PAUSE_SECONDS", 0.0)
        yield asked, content_of
        http.shutdown()
        thread.join()


def test_a_gated_file_is_resumed_and_the_token_stays_with_its_host(hub, tmp_path, monkeypatch):
    asked, _ = hub
    monkeypatch.setenv("HF_TOKEN", "secret")
    received = []
    path = fetch(GATED, tmp_path, progress=received.append)
    assert path.read_bytes() == VIT.read_bytes()
    assert sum(received) == VIT.stat().st_size
    page, resumed = "/owner/model/resolve/main/model.safetensors", asked[-1][2]
    assert [entry[:2] for entry in asked] == [(page, "Bearer secret"), ("/stored", None)] * 2
    assert resumed is not None
    assert {file.name for file in tmp_path.iterdir()} == {"vit.safetensors", "vit.safetensors.sha256"}
    fetch(GATED, tmp_path)
    assert len(asked) == 4


def test_weights_that_change_during_the_download_start_over(hub, tmp_path, monkeypatch):
    old = bytearray(VIT.read_bytes())
    old[60_000] ^= 1
    hub[1].insert(0, bytes(old))  # only the first connection gets this one
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert fetch(GATED, tmp_path).read_bytes() == VIT.read_bytes()


def test_a_gated_file_without_a_token_says_what_to_do(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = rf"401 .*Accept its terms at {HUB}/owner/model, and set HF_TOKEN to a token of {HUB}/settings/tokens"
    with pytest.raises(CheckpointError, match=words):
        fetch(GATED, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_download_that_is_another_file_is_not_kept(hub, tmp_path, monkeypatch):
    hub[1][0] = b"<html>" + bytes(80_000)
    monkeypatch.setenv("HF_TOKEN", "secret")
    with pytest.raises(CheckpointError, match=r"expected complete weights; got: .* a header of at most .* Nothing"):
        fetch(GATED, tmp_path)
    assert not list(tmp_path.iterdir())
