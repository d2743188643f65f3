"""The command line: terminal output and exit status."""

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from sklearn.exceptions import UndefinedMetricWarning
from typer.testing import CliRunner

from histoblend.data.errors import InputError
from histoblend.pipelines import __main__ as command_line
from tests.pipelines.predict.small_installation import link_packages, run_with


@pytest.fixture
def main(monkeypatch):
    """``main`` with an app that calls a function, without signal handlers."""

    def run(function):
        monkeypatch.setattr(command_line, "app", function)
        command_line.main()

    monkeypatch.setattr(command_line, "stop_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["histoblend"])
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setenv("PYTHONWARNINGS", "")
    return run


@pytest.mark.parametrize("kind", [UserWarning, RuntimeWarning, FutureWarning, UndefinedMetricWarning])
def test_warnings_of_libraries_are_hidden(main, capfd, kind):
    main(lambda: warnings.warn("The least populated class in y has only 2 members", kind, stacklevel=1))
    assert capfd.readouterr() == ("", "")
    assert os.environ["PYTHONWARNINGS"] == "ignore"  # for workers


def test_warnings_that_tensorflow_logs_are_hidden_but_not_its_errors(main, caplog):
    logger = logging.getLogger("tensorflow")
    main(lambda: (logger.warning("5 out of the last 9 calls triggered retracing"), logger.error("failed")))
    assert caplog.messages == ["failed"]


def test_warnings_are_shown_if_python_is_told_to(main, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with pytest.warns(UserWarning, match="shown"):
        main(lambda: warnings.warn("shown", stacklevel=1))
    assert os.environ["PYTHONWARNINGS"] == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("weights must fit; got others."), "error: weights must fit; got others.\n"),
        (
            OSError(5, "Input/output error", "x.png"),
            "error: x.png: Input/output error. Finished steps are kept. Fix this, then run again.\n",
        ),
        (
            ModuleNotFoundError("No module named 'pooch.core'", name="pooch.core"),
            "error: histoblend needs pooch; not installed. requirements-predict.txt is enough for predict and heatmap "
            "only. Install everything: pip install -r requirements.txt.\n",
        ),
    ],
    ids=["input", "disk", "package"],
)
def test_an_error_the_user_can_fix_is_one_line_and_status_2(main, capfd, error, line):
    def fail():
        raise error

    with pytest.raises(SystemExit) as ended:
        main(fail)
    assert ended.value.code == 2
    assert capfd.readouterr().err == line


@pytest.mark.parametrize("step", ["baseline", "compare"])
def test_a_command_that_trains_needs_more_than_the_packages_for_predicting(tmp_path, step):
    (tmp_path / "packages").mkdir()
    done = run_with(
        link_packages(tmp_path / "packages"), "-m", "histoblend.pipelines", step, "--runs", tmp_path / "runs"
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {step} needs keras and matplotlib; not installed. ")
    assert done.stderr.endswith("pip install -r requirements.txt.\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["predict", "--bundle", "b", "--in", "i", "--out", "o.csv"], ["heatmap"]])
def test_zero_workers_are_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command_line.app, [*arguments, "--workers", "0"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith("workers must be a positive number, or -1 for one per core")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("step", command_line.COMMANDS)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Configuration phantom: 2,000 synthetic patches, not your data; results in runs/phantom/"),
        (
            ["--config", "folder", "--data", "mine", "--run", "one"],
            "Configuration folder: patches in mine; results in ",
        ),
    ],
    ids=["phantom", "folder"],
)
def test_a_run_first_says_what_it_reads(step, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "labels.csv").touch()
    for name in ("baseline", "ensemble", "generalise", "report", "one_step", "begin"):
        monkeypatch.setattr(f"histoblend.pipelines.commands.{name}", lambda *_: "folder")
    monkeypatch.setattr("histoblend.pipelines.printed_tables.show_audit", lambda run: None)
    result = CliRunner().invoke(command_line.app, [step, *words])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].startswith(said)


@pytest.mark.parametrize("step", command_line.COMMANDS)
def test_every_run_command_has_the_same_options(step):
    """Only `features` explains a column. A wrong value shows that --set is read."""
    runner = CliRunner()
    help_text = runner.invoke(command_line.app, [step, "--help"]).output
    for option in ("--config", "--set", "--data", "--run ", "--runs", "--missing", "--strict", "--rebuild"):
        assert option in help_text
    assert ("--explain" in help_text) == (step == "features")
    result = runner.invoke(command_line.app, [step, "--set", "split.fold=4"])
    assert isinstance(result.exception, InputError)
    assert "unknown key 'split.fold'; did you mean 'split.folds'?" in str(result.exception)
