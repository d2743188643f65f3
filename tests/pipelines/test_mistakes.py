"""Typical mistakes at the command line and in make: each gets one line that says what to do."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoblend.pipelines import __main__ as command_line
from tests import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words, folder=ROOT, finished=(".venv/.user",)):
    """Run make with this interpreter, without making what is finished: by default without installing anything.

    As from a terminal: a make inside `make test` would also print the folder that it enters.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *(f"--assume-old={name}" for name in finished), f"PY={sys.executable}", *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def complain(tmp_path, monkeypatch, capfd):
    """Run the command that make would run, in this process. Returns the lines on standard error."""

    def run(*words):
        _, _, _, *arguments = shlex.split(make("-n", *words).stdout.replace("\\\n", ""))
        monkeypatch.setattr(sys, "argv", ["histoblend", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        assert ended.value.code == 2
        assert not Path("runs").exists()
        return capfd.readouterr().err.splitlines()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "stop_on_signals", lambda: None)
    monkeypatch.setattr(command_line, "_silence_libraries", lambda: None)
    return run


def images(folder, side):
    """A folder of images with two classes."""
    rng = np.random.default_rng(0)
    for name in ("tumour", "normal"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["prepare", "CONFIG=kagle"], "Did you mean CONFIG=kaggle (--config kaggle)?"),
        (
            ["baseline", "CONFIG=kaggle"],
            "data.path must name the folder of a kaggle data set; it is empty. Give DATA=folder (--data folder). "
            "`make data DATASET=kaggle DATA=folder` downloads one.",
        ),
        (
            ["predict"],
            "missing: BUNDLE (--bundle), IN (--in), OUT (--out). Example: make predict BUNDLE=",
        ),
        (["predict", "IN=x", "BUNDLE=y"], "missing: OUT (--out)."),
        (["baseline", "SET=splt.folds=3"], "--set splt.folds=3: unknown key 'splt.folds'; did you mean 'split.folds'?"),
        (["prepare", "SET=seed = 3"], "got 'seed'. Put no space around '=' (SET='seed=1')."),
        (
            ["prepare", "RUN=my run"],
            "RUN=my run (--run): name: must be a folder name without slashes or spaces, such as RUN=my-run "
            "(--run my-run); got 'my run'.",
        ),
        (["prepare", "MISSING=ignore"], "MISSING=ignore (--missing): data.missing: Input should be 'error' or 'skip'"),
        (["prepare", "CONFIG=folder", "DATA=/nowhere/at/all"], "it does not exist. Check DATA=… (--data)."),
        (["prepare", "CONFIG=folder", f"DATA={ROOT / 'exmaples'}"], f"Did you mean {ROOT / 'examples'}?"),
        (["compare"], "RUNS must name 2 to 7 different runs; got none."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_gets_its_remedy_in_one_line(words, remedy, complain):
    (said,) = complain(*words)
    assert said.startswith("error: ")
    assert remedy in said


@pytest.mark.parametrize(
    ("config", "content", "remedies"),
    [
        ("kaggle", None, ["a kaggle data set; it is empty. Check DATA=…", "make data DATASET=kaggle"]),
        ("folder", 224, ["expected 96 × 96 pixels, got 224 × 224", "SET=data.size=224", "data.resize=resize"]),
    ],
    ids=["empty Kaggle folder", "224-px images"],
)  # fmt: skip
def test_a_folder_that_does_not_fit_is_explained(config, content, remedies, tmp_path, complain):
    folder = images(tmp_path / "data", content) if content else tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (said,) = complain("prepare", f"CONFIG={config}", f"DATA={folder}")
    assert all(remedy in said for remedy in remedies)


def test_patches_that_were_decoded_in_vain_are_not_kept(tmp_path, complain):
    folder = images(tmp_path / "data", 96)
    (folder / "normal" / "7.png").write_bytes(b"damaged")
    (said,) = complain("prepare", "CONFIG=folder", f"DATA={folder}", "STRICT=1", "SET=split.groups=patch")
    assert "7.png" in said


def test_every_run_command_takes_settings():
    """All options are spelled alike and have a help text, also where a command lacks one of them."""
    from typer.main import get_command

    commands = get_command(command_line.app).commands
    for name in command_line.COMMANDS:
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert {"--config", "--set", "--data", "--run", "--runs", "--missing", "--strict", "--rebuild"} <= options
        assert all(parameter.help for parameter in commands[name].params), name


@pytest.mark.parametrize("help_text", ["make", "command line"])
def test_the_help_lists_steps_in_order(help_text):
    from typer.testing import CliRunner

    said = make("help").stdout if help_text == "make" else CliRunner().invoke(command_line.app, ["--help"]).output
    listed = re.findall(r"^  (?:make )?([a-z-]+) +(.*)", said, re.M)
    names = [name for name, _ in listed]
    steps = [int(found[1]) for _, text in listed if (found := re.match(r"[Ss]tep (\d)", text))]
    assert steps == [1, 2, 3, 4, 5, 7]
    assert names.index("data") < names.index("baseline") < names.index("ensemble") < names.index("prepare")
    assert names.index("report") < names.index("compare") < names.index("predict") < names.index("heatmap")


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, an environment, a cache and the results of a run."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in (".venv", ".ruff_cache", "data/__pycache__", "runs/real/7-report", "runs/__pycache__"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_clean_keeps_results(checkout):
    assert make("clean", folder=checkout).returncode == 0
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "data", "runs"]
    assert not (checkout / "data" / "__pycache__").exists()
    assert (checkout / "runs" / "real" / "7-report").is_dir()


@pytest.mark.parametrize("confirm", ["", "CONFIRM=no", "CONFIRM=yes"])
def test_results_are_removed_only_if_confirmed(checkout, confirm):
    done = make("clean-runs", *([confirm] if confirm else []), folder=checkout)
    assert "runs/real" in done.stdout
    assert (checkout / "runs").exists() is (confirm != "CONFIRM=yes")
    assert done.returncode == (0 if confirm == "CONFIRM=yes" else 2)
    assert (checkout / ".venv").is_dir()
    if confirm == "CONFIRM=yes":
        assert "there is no folder runs/" in make("clean-runs", folder=checkout).stdout
    else:
        assert "make clean-runs CONFIRM=yes" in done.stderr


def test_predicting_installs_less_than_training(tmp_path):
    installed = {}
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-predict.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    for step in ("predict", "heatmap", "slide", "baseline"):
        shown = make("-n", step, folder=tmp_path, finished=())
        assert shown.returncode == 0, shown.stderr
        installed[step] = re.findall(r"requirements[\w-]*\.txt$", shown.stdout, re.MULTILINE)
    few, all_packages = ["requirements-predict.txt"], ["requirements.txt"]
    assert installed == {"predict": few, "heatmap": few, "slide": few, "baseline": all_packages}
    (tmp_path / ".venv" / ".user").touch()  # where everything is installed, nothing is replaced
    assert "requirements" not in make("-n", "predict", folder=tmp_path).stdout
