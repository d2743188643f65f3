"""Real processes on good and bad images: the run finishes, lists every bad file, and reads good files as usual."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from histoblend.data.patches import PatchSet
from histoblend.data.sources.labels import printable
from histoblend.data.storage.spreadsheet import read_written
from tests import ROOT
from tests.torture.corpus import NO_UTF8, bad_images, content, kind_of, no_files, noise, odd_but_good

pytestmark = pytest.mark.torture
#: Drops the capabilities by which the superuser ignores file permissions.
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
#: Memory limit of a run, in bytes. Decoding must stay below it for any content of a file.
MOST = 10**9


def drops_privileges():
    """Command prefix for a process that file permissions apply to; None if there is no way."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        return None
    tried = subprocess.run([*UNPRIVILEGED, sys.executable, "-c", ""], capture_output=True, check=False)
    return list(UNPRIVILEGED) if tried.returncode == 0 else None


def limited(*arguments):
    """Run a command and check its peak memory, which the process reads from /proc.

    getrusage would not do: its peak includes memory of the parent process, here all of pytest.
    """
    code = (
        "import pathlib, re, sys; from histoblend.pipelines.__main__ import main; status = 0\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code or 0\n"
        "said = pathlib.Path('/proc/self/status').read_text()\n"
        "print('peak', int(re.search(r'VmHWM:\\s+(\\d+) kB', said)[1]) * 1024); sys.exit(status)"
    )
    prefix = drops_privileges() or []
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    said, _, peak = done.stdout.rpartition("peak ")
    assert int(peak) < MOST
    return done.returncode, said


def locked(folder, name):
    """Write a good picture without read permission; return its expected message, or {} if permissions do not apply."""
    if drops_privileges() is None:
        return {}
    (folder / name).write_bytes(content(noise(9), "PNG" if name.endswith("png") else "TIFF"))
    (folder / name).chmod(0)
    return {name: "Permission denied"}


def check_listed(listed, expected):
    """The list contains every bad file once, with the expected words, and nothing else."""
    assert sorted(listed) == sorted(expected)
    for name, words in expected.items():
        assert words in listed[name], name
        assert "\n" not in listed[name], name


def record(faults, listed, report, good=()):
    """Record a row per kind of file: bad kinds with their first reason, and unusual good kinds."""
    for kind in dict.fromkeys(map(kind_of, listed)):
        names = [name for name in listed if kind_of(name) == kind]
        faults(f"image: {kind}", len(names), len(names), f"listed in {report}: {listed[names[0]]}")
    for kind in dict.fromkeys(map(kind_of, good)):
        number = sum(kind_of(name) == kind for name in good)
        faults(f"unusual but valid image: {kind}", number, number, "nothing: it is read like any other")


@pytest.fixture(scope="module")
def good():
    return {f"good-{number:02d}": noise(100 + number) for number in range(40)}


def test_prepare_reads_a_folder_of_good_and_bad_files(tmp_path, good, faults):
    folder = tmp_path / "images"
    for name in ("normal", "tumour"):
        (folder / name).mkdir(parents=True)
    for number, (name, picture) in enumerate(good.items()):
        picture.save(folder / ("normal", "tumour")[number % 2] / f"{name}.png")
    normal = folder / "normal"
    bad, odd = bad_images(), odd_but_good()
    for name, (made, _) in {**bad, **odd}.items():
        (normal / name).write_bytes(made)
    with open(os.fsencode(normal) + b"/" + NO_UTF8, "wb") as file:
        file.write(content(noise(10), "PNG"))
    expected = (
        {name: words for name, (_, words) in bad.items()} | no_files(normal, ".png") | locked(normal, "locked.png")
    )
    expected[printable(os.fsdecode(NO_UTF8))] = "its name is not UTF-8"
    settings = ["--config", "configs/folder.toml", "--data", folder, "--runs", tmp_path, "--run", "r"]
    status, said = limited("prepare", *settings, "--set", "split.folds=2")
    assert status == 0, said
    assert "Traceback" not in said
    assert f"{len(expected)} patches were set aside" in said
    made = tmp_path / "r" / "1-patches"
    listed = read_written(made / "set_aside.csv", ("patch_id", "reason")).set_index("patch_id")["reason"]
    check_listed(listed.to_dict(), {f"normal/{name}": words for name, words in expected.items()})
    patches = PatchSet.open(made)
    pixels = dict(zip(patches.table["patch_id"], patches.pixels, strict=True))
    expected_pixels = {f"normal/{name}": values for name, (_, values) in odd.items()}
    for number, (name, picture) in enumerate(good.items()):
        expected_pixels[f"{('normal', 'tumour')[number % 2]}/{name}.png"] = np.asarray(picture)
    assert sorted(pixels) == sorted(expected_pixels)
    for name, values in expected_pixels.items():
        np.testing.assert_array_equal(pixels[name], values, err_msg=name)
    record(faults, listed.to_dict(), "set_aside.csv", odd)


def test_prepare_reads_kaggles_layout_with_good_and_bad_files(tmp_path, good, faults):
    folder = tmp_path / "kaggle"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
    for name, picture in good.items():
        picture.save(folder / "train" / f"{name}.tif")
        picture.save(folder / "test" / f"{name}.tif")
    bad = bad_images((".tif",)) | {"grey.tif": (content(noise(11).convert("L"), "TIFF"), "got mode L")}
    bad["cyclic-1.tif"] = (bad["cyclic-1.tif"][0], "got mode 1")  # Kaggle's layout converts nothing
    expected = {name: words for name, (_, words) in bad.items()}
    for part in ("train", "test"):
        target = folder / part
        for name, (made, _) in bad.items():
            (target / name).write_bytes(made)
        expected |= no_files(target, ".tif") | locked(target, "locked.tif")
    ids = [*good, *(name.removesuffix(".tif") for name in expected)]
    pd.DataFrame({"id": ids, "label": np.arange(len(ids)) % 2}).to_csv(folder / "train_labels.csv", index=False)
    slides = pd.DataFrame({"id": ids, "wsi": [f"S{number % 10}" for number in range(len(ids))]})
    slides.to_csv(folder / "patch_id_wsi.csv", index=False)
    settings = ["--config", "configs/kaggle.toml", "--data", folder, "--runs", tmp_path, "--run", "r"]
    status, said = limited("prepare", *settings, "--set", "split.folds=2")
    assert status == 0, said
    assert "Traceback" not in said
    for made in (tmp_path / "r" / "1-patches", tmp_path / "r" / "1-patches" / "unlabelled"):
        listed = read_written(made / "set_aside.csv", ("patch_id", "reason")).set_index("patch_id")["reason"]
        check_listed(listed.to_dict(), {name.removesuffix(".tif"): words for name, words in expected.items()})
        patches = PatchSet.open_unlabelled(made)
        assert sorted(patches.table["patch_id"]) == sorted(good)
        for name, values in zip(patches.table["patch_id"], patches.pixels, strict=True):
            np.testing.assert_array_equal(values, np.asarray(good[name]), err_msg=name)
        record(faults, listed.to_dict(), "set_aside.csv")


def test_predict_skips_bad_files_and_predicts_good_ones_the_same(tmp_path, sound, good, faults):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, picture in good.items():
        picture.save(folder / f"{name}.png")
    odd = odd_but_good()
    for name, (made, _) in odd.items():
        (folder / name).write_bytes(made)
    arguments = ["predict", "--bundle", sound, "--in", folder, "--workers", 2, "--out"]
    status, said = limited(*arguments, tmp_path / "alone.csv")
    assert status == 0, said
    bad = bad_images()
    for name, (made, _) in bad.items():
        (folder / name).write_bytes(made)
    with open(os.fsencode(folder) + b"/" + NO_UTF8, "wb") as file:
        file.write(content(noise(10), "PNG"))
    expected = {name: words for name, (_, words) in bad.items()}
    expected |= no_files(folder, ".png") | locked(folder, "locked.png")
    expected[printable(os.fsdecode(NO_UTF8))] = "its name is not UTF-8"
    status, said = limited(*arguments, tmp_path / "out.csv")
    assert status == 3, said
    assert "Traceback" not in said
    assert f"{len(expected)} files were skipped" in said
    listed = read_written(tmp_path / "out.csv.skipped.csv", ("file", "reason")).set_index("file")["reason"]
    check_listed(listed.to_dict(), expected)
    alone, beside = (read_written(tmp_path / f"{name}.csv", ("id", "flags")) for name in ("alone", "out"))
    assert sorted(alone["id"]) == sorted([*good, *(name.removesuffix(".png").removesuffix(".tif") for name in odd)])
    pd.testing.assert_frame_equal(alone.set_index("id"), beside.set_index("id").loc[alone["id"]], check_exact=True)
    record(faults, listed.to_dict(), "….skipped.csv", odd)
