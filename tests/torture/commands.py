"""The real command line in a separate process, on data that need seconds."""

import subprocess
import sys

from tests import ROOT
from tests.processes import run_command

QUICK = {
    "data.n": 120, "data.slides": 12, "split.folds": 2, "features.families": ["colour"], "heads.features": ["colour"],
    "engine.workers": 1, "report.draws": 100, "report.repeats": 1,
}  # fmt: skip


def command(step, runs, *more, settings=None, limit=None, environment=None):
    """Run a step of the run ``one`` under `runs`. `settings` override QUICK; a value of None omits a key.

    `limit` is called in the new process before the command starts.
    """
    words = []
    for key, value in {**QUICK, **(settings or {})}.items():
        if value is not None:
            words += ["--set", f"{key}={value!r}"]
    arguments = [step, "--runs", str(runs), "--run", "one", *words, *more]
    if limit is environment is None:
        return run_command(*arguments)
    return subprocess.run(
        [sys.executable, "-m", "histoblend.pipelines", *arguments],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=limit, env=environment,
    )  # fmt: skip


def one_line(done):
    """The one-line error of a command that ended with a foreseeable fault."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.strip().count("\n") == 0
    return done.stderr.strip()
