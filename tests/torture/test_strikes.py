"""`ensemble` killed, interrupted or terminated at random moments of each step gives the bytes of an undisturbed run."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from tests import ROOT

pytestmark = [pytest.mark.torture, pytest.mark.length]
SMALL = [
    "data.n=320",
    "data.slides=16",
    "split.folds=3",
    "split.test_share=0.3",
    "report.draws=100",
    "report.repeats=1",
    "ensemble.draws=100",
    "features.families=['colour','lbp']",
    "features.shard=64",
    "heads.heads=['logistic']",
    "cnn.backbone=efficientnet-lite0",
    "cnn.weights=random",
    "cnn.size=32",
    "cnn.epochs=2",
    "cnn.batch=16",
]
SMALL += [
    "heads.features=['colour','handcrafted','context','embeddings']",
    "embeddings.backbone=efficientnet-lite0",
    "embeddings.weights=random",
    "embeddings.size=[64]",
    "embeddings.shard=64",
]
BEGINS = re.compile(r"([a-z-]+): (running|rebuilding)")
#: Files that must be identical byte by byte.
RESULTS = {"pixels.npy", "values.npy", "patches.parquet", "predictions.parquet", "ensemble.json", "sets.json"}
#: Files of an unfinished step that contain finished work and must not be computed again.
FINISHED = re.compile(r"(?!checkpoint)[^.].*\.npz")


def start(runs):
    command = [sys.executable, "-m", "histoblend.pipelines", "ensemble", "--runs", str(runs), "--run", "struck"]
    for setting in SMALL:
        command += ["--set", setting]
    pipe = subprocess.PIPE
    # A new session, so that the whole process group can get a signal, as with Ctrl-C in a terminal.
    return subprocess.Popen(
        command, cwd=ROOT, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True, bufsize=1
    )


def to_the_end(runs):
    """Start times of the steps in an undisturbed run, and its duration, in seconds."""
    begun, lines = {}, []
    started = time.monotonic()
    with start(runs) as process:
        for line in process.stdout:
            lines.append(line)
            if match := BEGINS.match(line):
                begun[match[1]] = time.monotonic() - started
    assert process.returncode == 0, "".join(lines)
    return begun, time.monotonic() - started


def results(runs):
    folder = runs / "struck"
    paths = [path for path in folder.rglob("*") if path.name in RESULTS]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def finished_work(runs):
    """Inode and modification time of each file with finished work of an unfinished step."""
    files = {}
    for path in runs.glob("struck/**/*.partial/**/*"):
        if FINISHED.fullmatch(path.name):
            state = path.stat()
            files[path] = state.st_ino, state.st_mtime_ns
    return files


class Epochs:
    """Epochs seen in checkpoints, with their seconds. A repeated epoch would have other seconds."""

    def __init__(self, runs):
        self.folder, self.seen = runs / "struck", {}

    def look(self):
        """Check that each checkpoint starts with the epochs seen before."""
        for path in self.folder.glob("5-cnn.partial/work/*/checkpoint.npz"):
            with np.load(path) as arrays:
                history = json.loads(str(arrays["text"]))["history"]
            self._check(path.parent.name, [row["seconds"] for row in history])

    def look_back(self):
        """Check the finished network in the same way; return the number of epochs seen in checkpoints."""
        table = pd.read_csv(self.folder / "5-cnn" / "history.csv", dtype={"run": str})
        seen = sum(map(len, self.seen.values()))
        for run, rows in table.groupby("run"):
            self._check(run if run == "final" else f"fold-{run}", rows["seconds"].tolist())
        return seen

    def _check(self, training, seconds):
        before = self.seen.get(training, [])
        assert seconds[: len(before)] == before, "a finished epoch was repeated"
        self.seen[training] = seconds


def struck(runs, step, delay, strike):
    """Start the command and strike it `delay` seconds after the step started.

    Returns the last output, exit status and seconds from strike to end, or None if the run finished before the strike.
    """
    with start(runs) as process:
        said = []
        if step:
            for line in process.stdout:
                said.append(line)
                match = BEGINS.match(line)
                if match and match[1] == step:
                    break
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            begun = time.monotonic()
            strike(process)
            process.wait()
            seconds = time.monotonic() - begun
            # Workers that survive a killed run keep the pipe open. They are left running, to test the next run.
            said += [] if strike is kill_one else process.stdout.readlines()
            return "".join(said), process.returncode, seconds
        said += process.stdout.readlines()
    assert process.returncode == 0, "".join(said)
    return None


def kill_one(process):
    process.kill()


def kill_all(process):
    os.killpg(process.pid, signal.SIGKILL)


def ctrl_c(process):
    os.killpg(process.pid, signal.SIGINT)


def terminate(process):
    process.terminate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of an undisturbed run, and the seconds of each of its steps."""
    runs = tmp_path_factory.mktemp("undisturbed")
    begun, length = to_the_end(runs)
    moments = [*begun.values(), length]
    return results(runs), {"": moments[0]} | dict(zip(begun, np.diff(moments).tolist(), strict=True))


def life(undisturbed, runs, rng):
    """Strike a run once in each of its steps, in order, then let it finish; return the strikes that hit."""
    expected, lengths = undisturbed
    hit, before, epochs = [], {}, Epochs(runs)
    for step in lengths:
        strike = STRIKES[rng.integers(len(STRIKES))]
        outcome = struck(runs, step, float(rng.uniform(0, lengths[step])), strike)
        now = finished_work(runs)
        again = [path for path, state in before.items() if now.get(path, state) != state]
        assert again == [], "finished work was made again"
        before = now
        epochs.look()
        if outcome is not None:
            hit.append((step or "start", strike, *outcome))
    to_the_end(runs)
    epochs.look_back()
    check_results(runs, expected)
    return hit


def check_results(runs, expected):
    actual = results(runs)
    assert actual.keys() == expected.keys()
    # Compares names, because bytes would give an unreadable message.
    assert [name for name in expected if actual[name] != expected[name]] == []


SEED = 8
#: Two thirds are kills, so that at least 50 of 100 strikes are kills.
STRIKES = [kill_one, kill_one, kill_all, kill_all, ctrl_c, terminate]
STATUS = {kill_one: -9, kill_all: -9, ctrl_c: 130, terminate: 143}
NAMES = {ctrl_c: "Ctrl-C", terminate: "SIGTERM"}
KEPT = "finished steps and shards are kept. Run the same command again to "


@pytest.mark.parametrize("seed", range(SEED, SEED + 10))
def test_a_run_struck_anywhere_ends_with_the_same_bytes(undisturbed, tmp_path, faults, seed):
    """Each seed is a separate run, struck in each of its steps and recorded separately."""
    stops = []
    hit = life(undisturbed, tmp_path / "life", np.random.default_rng(seed))
    for step, strike, said, status, seconds in hit:
        if strike in NAMES and KEPT not in said and step == "start":
            continue  # before the first line of the program, Python itself handles the signal
        assert status == STATUS[strike], said
        if strike in NAMES:
            assert "Traceback" not in said, said
            assert f"stopped ({NAMES[strike]}): {KEPT}" in said
            stops.append((strike, seconds))
        else:
            sees = "taking over the lock of process <n>, which has ended: …"
            sees += "; the run resumes without repeating finished parts"
            faults(f"`ensemble` killed (SIGKILL) during `{step}`", 1, 1, sees, seed)
    for strike, seconds in stops:
        sees = f"stopped ({NAMES[strike]}): {KEPT}resume at step …"
        faults(f"`ensemble` stopped by {NAMES[strike]} at random moments", 1, 1, sees, seed)
        faults("`ensemble` stopped by a signal: ended within 5 s", 1, int(seconds <= 5), "exit status 130 or 143", seed)


def test_a_network_killed_repeatedly_repeats_no_epoch(undisturbed, tmp_path, faults):
    expected, lengths = undisturbed
    runs, rng, kills = tmp_path / "again", np.random.default_rng(SEED), 0
    epochs = Epochs(runs)
    # Most kills come late enough that an epoch was finished. The network needs more than one such run.
    while kills < 12 and struck(runs, "cnn", float(rng.uniform(0.3, 0.9) * lengths["cnn"]), kill_all):
        epochs.look()
        kills += 1
    to_the_end(runs)
    seen = epochs.look_back()
    check_results(runs, expected)
    assert kills > 1
    assert seen > 2
    sees = f"nothing: training resumes after the last complete epoch; none of {seen} epochs was repeated"
    faults("fine-tuning killed repeatedly between epochs", kills, kills, sees, SEED)
