"""Downloads: the right bytes once, or one message that says what to do."""

import hashlib
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import h5py
import numpy as np
import pytest

from histoblend.features.networks.backend import DownloadedWeights
from histoblend.features.networks.downloads import fetch, models_folder
from histoblend.features.networks.weights import CheckpointError

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
    (tmp_path / "net.h5").write_bytes(left)
    with pytest.raises(CheckpointError, match=r"net\.h5: expected a complete HDF5 file; .* Nothing was kept"):
        fetch(weights, tmp_path)  # what the server gives is none either
    assert not list(tmp_path.iterdir())
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
