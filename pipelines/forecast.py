"""How long a command will still take: from the times of its finished steps, and of the same steps in earlier runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.run_files import UNLABELLED
from histoblend.pipelines.runtime.artefacts import MANIFEST
from histoblend.pipelines.runtime.provenance import code_digest, library_versions
from histoblend.pipelines.runtime.screen import duration

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run, Step

#: Seconds of each step with the settings of configs/kaggle.toml on 2,965 patches, on a machine with two cores: first of
#: `make baseline`, then those that differ in `make ensemble`. They are scaled by the speed of this command's steps.
PATCHES = 2965
BASELINE_S = {
    "features": 10.0, "features-normalised": 8.0, "embeddings": 19.0, "embeddings-normalised": 19.0, "heads": 172.0,
    "ladder": 2.0, "models": 1.0, "importances": 9.0, "attributions": 7.0, "leakage": 1.0, "centres": 15.0,
    "stain": 37.0, "sections": 6.0, "figures": 15.0, "report": 1.0, "refit": 45.0, "bundle": 6.0, "predictions": 4.0,
}  # fmt: skip
ENSEMBLE_S = {"cnn": 749.0, "ensemble": 10.0, "saliency": 38.0, "stain": 128.0, "bundle": 25.0, "predictions": 12.0}

#: Times of a run with this many times more or fewer patches are not used, and no command is taken to be so much faster
#: than an earlier one (a resumed step is).
MOST_SCALING = 4.0
#: The speed of this command counts once its finished steps took this many seconds in the earlier run.
MEASURED_S = 20.0
#: At most this many earlier runs are read, the newest.
MOST_RUNS = 20


class Forecast:
    """Time left of a command.

    A step's time is that of the same step with the same settings in an earlier run, first of this run folder, then of
    the run with the most similar number of patches, and else of a reference machine. It is scaled by the number of
    patches and by how much slower or faster the finished steps of this command were.

    The time left is stated once it does not rest on another machine alone: if every time is from a run of this
    machine, or if the finished steps took at least ``MEASURED_S`` before.

    Parameters
    ----------
    run : Run
        Its patches must be prepared.
    targets : sequence of str
        Steps that the command brings up to date.
    """

    def __init__(self, run: Run, targets: Sequence[str]) -> None:
        self.run, self.targets = run, targets
        self.actual: dict[str, float] = {}
        self.current = ""
        self.started = 0.0
        self._checked: dict[str, bool] = {}

    @cached_property
    def steps(self) -> list[str]:
        """All steps of the command, in the order of the plan."""
        needed: set[str] = set()
        pending = [name for name in self.targets if self._has(name)]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending += [read for read in self.run.plan[name].reads if self._has(read)]
        return [name for name in self.run.plan if name in needed]

    def _has(self, name: str) -> bool:
        """Whether a step is part of the run, without building another one to find out."""
        if name == "predictions":  # whether a model can make them is known only after the heads
            return (self.run.step("prepare").folder / UNLABELLED).is_dir()
        return self.run.has(name)

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        """Measure a step while it is built, and state its number and the time left of the command."""
        self.current, self.started = name, time.perf_counter()
        if name in self.steps:
            finished = sum(step in self.run.finished for step in self.steps)
            number = f"step {finished + 1} of {len(self.steps)}"
            self.run.screen.say("  " + "; ".join(filter(None, (number, self.words(None)))))
        yield
        self.actual[name] = time.perf_counter() - self.started
        self.current = ""

    def words(self, stage_s: float | None) -> str:
        """The time left of the whole command, or nothing if it cannot be stated yet.

        Parameters
        ----------
        stage_s : float or None
            Time left of the stage that is shown, if known. The step in progress takes at least as long.
        """
        pending = self._pending()
        names = [*filter(None, [self.current]), *pending]
        slowdown = self._slowdown()
        known = [name for name in names if name in self.expected]
        if not known or (slowdown is None and any(self.expected[name][1] for name in known)):
            return ""
        factor = slowdown or 1.0
        left = sum(self.expected[name][0] * factor for name in pending if name in self.expected)
        if self.current in self.expected:
            elapsed = time.perf_counter() - self.started
            left += max(self.expected[self.current][0] * factor - elapsed, stage_s or 0.0)
        unknown = [name for name in names if name not in self.expected]
        if unknown:
            return f"whole command: more than {duration(left)} left (time of {', '.join(unknown)} not known yet)"
        return f"whole command: about {duration(left)} left"

    def _slowdown(self) -> float | None:
        """How many times longer this command's steps took than expected; None before enough is measured."""
        before = {name: self.expected[name][0] for name in self.actual if name in self.expected}
        actual = sum(self.actual[name] for name in before)
        expected = sum(before.values())
        if self.current in self.expected and self.started:
            elapsed = time.perf_counter() - self.started
            if elapsed > self.expected[self.current][0]:
                actual, expected = actual + elapsed, expected + self.expected[self.current][0]
        return max(actual / expected, 1 / MOST_SCALING) if expected >= MEASURED_S else None

    def _pending(self) -> list[str]:
        """Steps that will probably be built: not yet checked, and missing, outdated, or reading such a step."""
        pending: list[str] = []
        for name in self.steps:
            if name in self.run.finished or name == self.current:
                continue
            reads = self.run.plan[name].reads
            if self.current in reads or any(read in pending for read in reads) or not self._is_current(name):
                pending.append(name)
        return pending

    def _is_current(self, name: str) -> bool:
        """Whether a step's folder was made with the present settings, code and libraries."""
        if name not in self._checked:
            step = self.run.plan[name]
            manifest = _read(self.run.folder / step.folder)
            made = (manifest.get("config"), manifest.get("code"), manifest.get("libraries"))
            self._checked[name] = made == (self._settings(step), code_digest(step.code), library_versions())
        return self._checked[name]

    def _settings(self, step: Step) -> Any:
        return json.loads(json.dumps(step.settings(self.run.config), sort_keys=True))

    @cached_property
    def expected(self) -> dict[str, tuple[float, bool]]:
        """Seconds of each step at this number of patches, and whether they are of the reference machine."""
        patches = int(self.run.step("prepare").manifest["rows"])
        runs = [self.run.folder, *_newest_runs(self.run.root, self.run.folder)]
        counts = {folder: _read(folder / self.run.plan["prepare"].folder).get("rows", 0) for folder in runs}
        ratios = {folder: patches / count for folder, count in counts.items() if count}
        near = [folder for folder in ratios if 1 / MOST_SCALING <= ratios[folder] <= MOST_SCALING]
        near.sort(key=lambda folder: (folder != self.run.folder, max(ratios[folder], 1 / ratios[folder])))
        found: dict[str, tuple[float, bool]] = {}
        for name in self.steps:
            step = self.run.plan[name]
            for folder in near:
                manifest = _read(folder / step.folder)
                if "seconds" in manifest and manifest.get("config") == self._settings(step):
                    found[name] = (manifest["seconds"] * ratios[folder], False)
                    break
            else:
                seconds = self._reference(step)
                if seconds is not None and 1 / MOST_SCALING <= patches / PATCHES <= MOST_SCALING:
                    found[name] = (seconds * patches / PATCHES, True)
        return found

    def _reference(self, step: Step) -> float | None:
        shipped = json.loads(json.dumps(step.settings(load_config(Path("kaggle"))), sort_keys=True))
        times = BASELINE_S | (ENSEMBLE_S if "cnn" in self.steps else {})
        return times.get(step.name) if shipped == self._settings(step) else None


def show_time_left(run: Run, *targets: str) -> None:
    """Show the time left until these steps of a run are up to date. Its patches must be prepared."""
    forecast = Forecast(run, targets)
    run.building, run.screen.command_left = forecast.building, forecast.words


def _newest_runs(root: Path, own: Path) -> list[Path]:
    folders = [path for path in root.iterdir() if path.is_dir() and path != own] if root.is_dir() else []
    return sorted(folders, key=lambda path: -path.stat().st_mtime)[:MOST_RUNS]


def _read(folder: Path) -> dict[str, Any]:
    """Manifest of a step, or nothing if it is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
