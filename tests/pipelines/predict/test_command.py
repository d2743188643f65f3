"""The predict command: its help, errors in one line, and files that it never replaces."""

import os
import subprocess
import sys

import pytest

from histoblend.data.errors import InputError
from histoblend.models.calibration import POINTS
from histoblend.pipelines.predict.explanation import file_name
from histoblend.pipelines.predict.folder import check_out
from tests import ROOT


def test_explanations_of_two_ids_have_different_file_names():
    names = [file_name(name) for name in ("a b", "a_b", "a/b", "\u00e9", "\u00e8", "../x")]
    assert len(set(names)) == len(names)
    assert names[1] == "a_b"
    assert all(name.isascii() and "/" not in name for name in names)


def test_the_help_lists_every_operating_point():
    from typer.testing import CliRunner

    from histoblend.pipelines.__main__ import app

    for command in ("predict", "heatmap"):
        said = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
        assert all(point in said for point in POINTS)


@pytest.mark.parametrize("name", ["in/a.tif", "labels.csv", "out.csv.skipped.csv"])
def test_a_file_of_the_user_is_never_replaced(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / name).write_bytes(b"theirs")
    out = tmp_path / name.removesuffix(".skipped.csv")
    with pytest.raises(InputError, match=r"expected a new file, or an earlier table of predict.*Choose another OUT"):
        check_out(tmp_path / "in", out, explain=False)
    assert (tmp_path / name).read_bytes() == b"theirs"


@pytest.mark.parametrize("kind", ["link", "dead link", "pipe"])
def test_a_link_or_a_device_is_never_replaced(tmp_path, kind):
    out = tmp_path / "out.csv"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to(tmp_path / "far.csv")
        (tmp_path / ("far.csv" if kind == "link" else "other.csv")).write_text("")
    with pytest.raises(InputError, match="got another file, a link or a device"):
        check_out(tmp_path, out, explain=False)
    assert not out.is_file() or out.is_symlink()


def test_an_earlier_table_or_an_empty_file_is_replaced(tmp_path):
    for content in (b"id,probability,label,flags\na,0.5,1,\n", b""):
        (tmp_path / "out.csv").write_bytes(content)
        check_out(tmp_path, tmp_path / "out.csv", explain=False)


def test_the_command_line_reports_a_wrong_bundle_in_one_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "histoblend.pipelines",
            "predict",
            "--bundle",
            tmp_path,
            "--in",
            tmp_path,
            "--out",
            tmp_path / "o.csv",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: expected a bundle with bundle.json; there is none.")
    assert done.stderr.count("\n") == 1
