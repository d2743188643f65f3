"""``make data`` and ``make weights``: the downloaded files, and the messages on failure."""

import gzip
import hashlib
import subprocess
import sys
import zipfile

import pytest

from histoblend.data.sources.download import Published
from histoblend.pipelines import download
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT


def command(*arguments, step="data"):
    return subprocess.run(
        [sys.executable, "-m", "histoblend.pipelines", step, *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pcam"], "error: expected a folder for the data set"),
        (["imagenet", "--data", "{tmp}"], "kaggle or the path of a zip or tar file; got 'imagenet'"),
        (["", "--data", "{tmp}"], "error: DATASET must be pcam, kaggle or"),
        (
            ["kaggle", "--data", "{tmp}", "--mirror", "http://127.0.0.1"],
            "error: a mirror can only be used for DATASET=pcam",
        ),
        (["{tmp}/no.zip", "--data", "{tmp}/x"], "expected a complete zip or tar file"),
    ],
)
def test_an_expected_error_is_one_line_and_status_2(tmp_path, arguments, message):
    (tmp_path / "no.zip").write_text("no")
    done = command(*[argument.format(tmp=tmp_path) for argument in arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_archive_downloaded_by_hand_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("train/a.tif", b"pixels")
    done = command(str(tmp_path / "a.zip"), "--data", str(tmp_path / "there"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "unpacked train" in done.stdout
    assert (tmp_path / "there" / "train" / "a.tif").read_bytes() == b"pixels"


def test_downloads_are_counted_and_unpacked(tmp_path, monkeypatch, capsys):
    def deliver(files, folder, *, mirror, progress):
        assert mirror == "http://127.0.0.1/files"
        for file in files:
            (folder / file.name).write_bytes(gzip.compress(b"content") if file.name.endswith(".gz") else b"wsi\n")
            for _ in range(3):
                progress(file.name, 700_000)
        return [folder / file.name for file in files]

    counted = []
    monkeypatch.setattr(download, "PCAM", (Published("a.h5.gz", "", 2_100_000), Published("b.csv", "", 0)))
    monkeypatch.setattr(download, "download_files", deliver)
    (tmp_path / "a.h5").write_bytes(b"cont")  # unpacked by hand, and interrupted
    screen = Screen()
    monkeypatch.setattr(screen, "progress", lambda *_: _Counter(counted))
    download.fetch("pcam", tmp_path, mirror="http://127.0.0.1/files", screen=screen)
    assert sum(counted) == 4
    assert (tmp_path / "a.h5").read_bytes() == b"content"
    assert "2 files in" in capsys.readouterr().out


def test_weights_are_fetched_and_described(tmp_path, monkeypatch, capsys):
    def deliver(row, progress):
        progress(2_500_000)
        (tmp_path / "uni.bin").write_bytes(bytes(2_500_000))
        return tmp_path / "uni.bin"

    monkeypatch.setattr("histoblend.features.networks.backbones.locate_weights", deliver)
    counted = []
    screen = Screen()
    monkeypatch.setattr(screen, "progress", lambda *_: _Counter(counted))
    download.fetch_weights("uni", screen)
    assert counted == [2]
    words = capsys.readouterr().out
    assert "MahmoodLab/UNI/resolve/main/pytorch_model.bin, licence CC-BY-NC-ND-4.0; gated" in words.replace("\n", "")
    assert f"sha256:{hashlib.sha256(bytes(2_500_000)).hexdigest()}" in words.replace("\n", "")


def test_an_unknown_network_is_one_line():
    done = command("un1", step="weights")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Did you mean 'uni'?" in done.stderr


class _Counter:
    def __init__(self, counted):
        self.counted = counted

    def __enter__(self):
        return self.counted.append

    def __exit__(self, *_):
        return None
