"""Realistic folders and files: long and foreign names, spaces, read-only sources, slow network shares."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.torture.commands import command, one_line

pytestmark = pytest.mark.torture
FOLDER_NAMES = {
    "spaces": "my slides (copy) of  June",
    "quotes and symbols": 'it\'s "50%" & $HOME; [x]* #1',
    "other scripts": "Mikrometastase-Lymphknoten_前哨淋巴结_سرطان_ß",
    "two Unicode forms of ü": "Lu\u0308beck und L\u00fcbeck",
    "a leading dash": "-rf",
    "245 characters": "long-" + 240 * "n",
}
RESULTS = ("1-patches/pixels.npy", "2-features/values.npy", "4-heads/predictions.parquet")


def patches(folder, count=60):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    names = [f"p{number:03d}.png" for number in range(count)]
    labels = [number % 2 for number in range(count)]
    for name, label in zip(names, labels, strict=True):
        pixels = rng.integers(90, 200, (96, 96, 3), dtype=np.uint8)
        pixels[..., 1] -= 60 * np.uint8(label)
        Image.fromarray(pixels).save(folder / name)
    slides = [f"S{number // 5}" for number in range(count)]
    pd.DataFrame({"file": names, "label": labels, "slide": slides}).to_csv(folder / "labels.csv", index=False)
    return folder


def heads(runs, data, environment=None):
    more = ["--config", "configs/folder.toml", f"--data={data}"]
    return command("heads", runs, *more, settings={"data.n": None, "data.slides": None}, environment=environment)


def results(runs):
    return [(runs / "one" / name).read_bytes() for name in RESULTS]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    patches(folder / "data")
    done = heads(folder / "runs", folder / "data")
    assert done.returncode == 0, done.stderr
    return folder / "data", results(folder / "runs")


KINDS = [
    kind if kind == "quotes and symbols" else pytest.param(kind, marks=pytest.mark.length) for kind in FOLDER_NAMES
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_folder_does_not_change_results(tmp_path, plain, kind, faults):
    data, expected = plain
    folder = tmp_path / FOLDER_NAMES[kind]
    shutil.copytree(data, folder / "data")
    done = heads(folder / "runs", folder / "data")
    assert done.returncode == 0, done.stderr
    assert results(folder / "runs") == expected
    faults(f"data and runs in a folder whose name has {kind}", 1, 1, "nothing: identical results")


def test_a_path_too_long_for_the_system_is_a_one_line_error(tmp_path, faults):
    said = one_line(command("prepare", tmp_path / "/".join(18 * [240 * "x"])))
    assert "File name too long" in said
    faults("a path of more than 4,096 characters", 1, 1, "error: <path>: File name too long. …")


def test_nothing_is_written_into_a_read_only_source(tmp_path, plain, faults):
    data, expected = plain
    source = tmp_path / "read-only"
    source.mkdir()
    mounted = subprocess.run(["mount", "--bind", data, source], capture_output=True, check=False).returncode == 0
    if mounted:
        subprocess.run(["mount", "-o", "remount,ro,bind", source], check=True)
    elif os.geteuid() == 0:
        pytest.skip("the superuser can write into any folder and cannot mount one here")
    else:
        shutil.copytree(data, source, dirs_exist_ok=True)
        source.chmod(0o555)
    try:
        with pytest.raises(OSError, match=r"Read-only|denied"):
            (source / "written").touch()
        done = heads(tmp_path / "runs", source)
        assert done.returncode == 0, done.stderr
        assert results(tmp_path / "runs") == expected
        refused = heads(source / "runs", data)
        said = one_line(refused)
        assert str(source) in said
    finally:
        if mounted:
            subprocess.run(["umount", source], check=True)
        else:
            source.chmod(0o755)
    faults("a read-only data folder", 1, 1, "nothing: identical results")
    faults("a read-only run folder", 1, 1, said.replace(str(tmp_path), "…"))


#: Loaded by the interpreter and its workers at start; delays opening a patch like a slow network share.
SLOW = """
import sys, time
def slow(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".png"):
        time.sleep(0.05)
sys.addaudithook(slow)
"""


@pytest.mark.length
def test_slow_reads_do_not_change_results(tmp_path, plain, faults):
    data, expected = plain
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    done = heads(tmp_path / "runs", data, {**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "runs") == expected
    faults("each image opened with a delay of 50 ms", 60, 60, "nothing: identical results")


@pytest.mark.length
def test_a_source_that_disappears_is_a_one_line_error_and_the_run_resumes(tmp_path, plain, faults):
    data, expected = plain
    source = tmp_path / "share"
    shutil.copytree(data, source)
    hidden = Path(f"{source}.away")
    assert heads(tmp_path / "runs", source).returncode == 0
    shutil.rmtree(tmp_path / "runs" / "one" / "4-heads")
    source.rename(hidden)
    said = one_line(heads(tmp_path / "runs", source))
    hidden.rename(source)
    done = heads(tmp_path / "runs", source)
    assert done.returncode == 0, done.stderr
    assert "features: up to date" in done.stdout
    assert results(tmp_path / "runs") == expected
    faults("a network share that is unavailable for a while", 1, 1, said.replace(str(tmp_path), "…"))
