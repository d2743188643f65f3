"""Real processes: a second run in the same folder is refused, locks of dead runs are taken over, signals end a run."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests import ROOT
from tests.processes import Command

pytestmark = pytest.mark.torture


def start(runs):
    return Command("prepare", "--runs", runs, "--run", "one", "--set", "data.n=4000")


def started(runs):
    """A run that holds its lock and has started its first step."""
    process = start(runs)
    assert process.stdout.readline().startswith("Configuration phantom: ")
    assert process.stdout.readline() == "prepare: running\n"
    return process


def test_a_second_process_is_refused_and_the_lock_of_a_dead_process_is_taken_over(tmp_path, faults):
    first = started(tmp_path)
    os.kill(first.pid, signal.SIGSTOP)  # on a slow machine it could finish before the second one looks at the lock
    assert json.loads((tmp_path / "one" / ".lock").read_text())["pid"] == first.pid
    second = start(tmp_path)
    out, said = second.communicate()
    first.kill()
    first.communicate()
    assert (second.returncode, out) == (2, "")
    assert said.startswith("error: ")
    assert f"process {first.pid} on " in said
    third = start(tmp_path)
    assert f"taking over the lock of process {first.pid}, which has ended" in third.stdout.readline()
    third.kill()
    third.communicate()
    faults(
        "a second process in the same run folder", 1, 1, "error: … process <n> … has been working in this run folder"
    )
    faults("a lock left by a killed process", 1, 1, "taking over the lock of process <n>, which has ended: …")


#: Starts a process like a step starts its workers, and waits for it.
PARENT = """
import subprocess, sys
from histoblend.pipelines.runtime.signals import stop_on_signals
stop_on_signals()
subprocess.run([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"])
"""


def test_ctrl_c_in_a_terminal_prints_no_worker_traceback(faults):
    """A terminal sends Ctrl-C to every process of the group, to which Python answers with a traceback."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PARENT]
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)  # returns when the pipe is closed, so the worker has ended too
    assert process.returncode == 130
    assert (
        said.strip()
        == "stopped (Ctrl-C): finished steps and shards are kept. Run the same command again to start again."
    )
    faults("Ctrl-C while a worker runs", 1, 1, said.strip())


WORKERS = """
import signal
from joblib import Parallel, delayed
from histoblend.pipelines.runtime.signals import stop_on_signals
def blocked():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
stop_on_signals()
for _ in range(2):
    print(Parallel(n_jobs=2)(delayed(blocked)() for _ in range(4)))
"""


def test_workers_of_joblib_do_not_take_ctrl_c():
    """Some workers start with a resource tracker, which unblocks signals."""
    done = subprocess.run([sys.executable, "-c", WORKERS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == 2 * ["[True, True, True, True]"], done.stderr


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_the_run_and_names_the_step_to_resume(tmp_path, faults, number, name):
    process = started(tmp_path)
    os.kill(process.pid, number)
    _, said = process.communicate()
    assert process.returncode == 128 + number
    words = "finished steps and shards are kept. Run the same command again to resume at step 'prepare'."
    assert said.strip() == f"stopped ({name}): {words}"
    faults(f"{name} while decoding", 1, 1, said.strip())
