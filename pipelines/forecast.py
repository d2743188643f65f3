"""How long a command will still take: from the times of its finished steps, and of the same steps in earlier runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.models.names import TABLES, tables_of
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.run import Listed
from histoblend.pipelines.run_files import UNLABELLED
from histoblend.pipelines.runtime.artefacts import MANIFEST
from histoblend.pipelines.runtime.provenance import code_digest, library_versions
from histoblend.pipelines.runtime.screen import duration

if TYPE_CHECKING:
    from histoblend.pipelines.config import Config
    from histoblend.pipelines.run import Run, Step

#: Seconds of each step on two idle cores with the settings of configs/kaggle.toml, for PATCHES patches; of predictions,
#: by the number of unlabelled patches. First `make baseline`, then the steps that differ in `make ensemble`. Measured
#: are all steps at the first size but centres, which are not known there, and learning-network. At the other sizes,
#: centres, learning-network, cnn, bundles and predictions are estimated. Heads and refit at the last one were measured
#: below a limit of 3 GB of memory.
SIZES = {"predictions": (300, 5000, 57458)}
PATCHES = (2965, 20000, 220025)
BASELINE_S = {
    "prepare": (5.0, 9.0, 88.0),
    "features": (10.0, 14.0, 119.0), "features-normalised": (5.0, 14.0, 121.0),
    "embeddings": (23.0, 70.0, 740.0), "embeddings-normalised": (11.0, 67.0, 735.0),
    "heads": (80.0, 640.0, 1182.0), "refit": (25.0, 199.0, 263.0),
    "ladder": (2.0, 3.0, 13.0), "models": (1.0, 3.0, 15.0), "bundle": (6.0, 7.0, 15.0),
    "importances": (7.0, 29.0, 60.0), "attributions": (7.0, 19.0, 160.0), "leakage": (1.0, 1.0, 3.0),
    "centres": (15.0, 60.0, 120.0), "shortcuts": (6.0, 8.0, 15.0), "learning": (33.0, 60.0, 140.0),
    "learning-network": (2300.0, 5800.0, 5800.0),
    "stain": (20.0, 23.0, 47.0), "sections": (4.0, 5.0, 20.0), "figures": (22.0, 22.0, 27.0), "report": (1.0, 1.0, 1.0),
    "predictions": (4.0, 52.0, 600.0),
}  # fmt: skip
ENSEMBLE_S = {
    "cnn": (370.0, 2500.0, 6000.0), "ensemble": (2.0, 8.0, 9.0), "saliency": (16.0, 16.0, 16.0),
    "ladder": (2.0, 5.0, 43.0), "stain": (46.0, 47.0, 60.0), "bundle": (11.0, 12.0, 20.0),
    "predictions": (5.0, 60.0, 680.0),
}  # fmt: skip
#: Presets and settings, and the times of the steps that they change. Measured are presets at the first size, and 8-bit
#: embeddings at the last one.
VARIANTS: tuple[tuple[str, tuple[str, ...], dict[str, tuple[float, float, float]]], ...] = (
    ("default", (), {}),
    ("default", ("embeddings.precision=int8",), {
        "embeddings": (11.0, 29.0, 317.0), "embeddings-normalised": (5.0, 29.0, 318.0),
    }),
    ("fast", (), {
        "embeddings": (2.0, 13.0, 148.0), "embeddings-normalised": (2.0, 13.0, 148.0),
        "heads": (38.0, 300.0, 600.0), "refit": (12.0, 90.0, 130.0), "ensemble": (2.0, 5.0, 8.0),
        "bundle": (1.0, 2.0, 4.0), "importances": (1.0, 4.0, 12.0), "stain": (6.0, 9.0, 20.0),
        "predictions": (1.0, 10.0, 115.0),
    }),
    ("best", (), {
        "embeddings": (173.0, 1160.0, 12800.0), "embeddings-normalised": (163.0, 1100.0, 12100.0),
        "heads": (126.0, 900.0, 1900.0), "refit": (50.0, 370.0, 490.0), "cnn": (1040.0, 7000.0, 77000.0),
        "bundle": (33.0, 34.0, 42.0), "stain": (240.0, 241.0, 260.0), "learning": (84.0, 110.0, 190.0),
        "saliency": (15.0, 15.0, 15.0), "predictions": (27.0, 380.0, 4400.0),
    }),
)  # fmt: skip

#: Times of a run with this many times more or fewer patches only say how fast the machine is. No command is taken to be
#: so much faster than expected (a resumed step is).
MOST_SCALING = 4.0
#: The speed of finished steps counts once they were expected to take this many seconds.
MEASURED_S = 20.0
#: Steps that ask the prepared patches whether they are needed.
ASKS_PATCHES = (*TABLES, "leakage", "refit", "centres", "predictions")
#: At most this many earlier runs are read, the newest.
MOST_RUNS = 20


class Forecast:
    """Time left of a command.

    A step's time is that of the same step with the same settings in an earlier run, first of this run folder, then of
    the run with the most similar number of patches, and else of a reference machine, multiplied by how much slower the
    earlier runs were than that machine. It grows with the number of patches as on the reference machine, and is scaled
    by how much slower or faster the finished steps of this command were.

    Parameters
    ----------
    run : Run
    targets : sequence of str
        Steps that the command brings up to date. While its patches are being prepared, some steps are guessed from the
        configuration.
    """

    def __init__(self, run: Run, targets: Sequence[str]) -> None:
        self.run, self.targets = run, targets
        self.current = ""
        self.started = 0.0
        self._checked: dict[str, bool] = {}
        self.actual: dict[str, float] = {}
        if "prepare" in run.finished and (seconds := run.finished["prepare"].manifest.get("seconds")):
            self.actual["prepare"] = seconds

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
        if "prepare" not in self.run.finished and name in ASKS_PATCHES:
            return self._will_have(name)
        if name == "predictions":  # whether a model can make them is known only after the heads
            return (self.run.step("prepare").folder / UNLABELLED).is_dir()
        return self.run.has(name)

    def _will_have(self, name: str) -> bool:
        """Whether a step is part of a run whose patches are being prepared, if slides and test slides are known."""
        config = self.run.config
        if name == "predictions":
            return bool(self.listed and self.listed.unlabelled)
        if name in ("refit", "centres"):
            return config.final.refit == "all" if name == "refit" else bool(config.data.centre_map)
        table = "features" if name == "leakage" else name
        return any(table in tables_of(columns) for columns in config.heads.features)

    @property
    def listed(self) -> Listed | None:
        """Numbers of patches that are prepared, or being prepared. None if they are not counted yet."""
        if "prepare" not in self.run.finished:
            return self.run.listed
        manifest = self.run.finished["prepare"].manifest
        return Listed(int(manifest["rows"]), int(manifest.get("notes", {}).get("unlabelled", 0)))

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        """Measure a step while it is built, and state its number and the time left of the command."""
        self.current, self.started = name, time.perf_counter() - self.run.screen.once_s
        if self.listed and name in self.steps:
            finished = sum(step in self.run.finished for step in self.steps)
            number = f"step {finished + 1} of {len(self.steps)}"
            self.run.screen.say("  " + "; ".join(filter(None, (number, self.words(None)))))
        yield
        self.actual[name] = self._elapsed
        self.current = ""

    @property
    def _elapsed(self) -> float:
        """Seconds of the step in progress, without work that only a first run does."""
        return time.perf_counter() - self.run.screen.once_s - self.started

    def words(self, stage_s: float | None) -> str:
        """The time left of the whole command, or nothing if it cannot be stated yet.

        Parameters
        ----------
        stage_s : float or None
            Time left of the stage that is shown, if known. The step in progress takes at least as long.
        """
        if self.listed is None:
            return ""
        pending = self._pending()
        names = [*filter(None, [self.current]), *pending]
        slowdown = self._slowdown()
        known = [name for name in names if name in self.expected]
        if not known:
            return ""
        factor = slowdown or 1.0
        left = sum(self.expected[name][0] * factor for name in pending if name in self.expected)
        if self.current in self.expected:
            left += max(self.expected[self.current][0] * factor - self._elapsed, stage_s or 0.0)
        words = f"about {duration(left)} left"
        if unknown := [name for name in names if name not in self.expected]:
            words = f"more than {duration(left)} left (time of {', '.join(unknown)} not known yet)"
        if slowdown is None and any(self.expected[name][1] for name in known):
            words += " on two idle cores (this machine's speed is not known yet)"
        return f"whole command: {words}"

    def _slowdown(self) -> float | None:
        """How many times longer this command's steps took than expected; None before enough is measured."""
        before = {name: self.expected[name][0] for name in self.actual if name in self.expected}
        actual = sum(self.actual[name] for name in before)
        expected = sum(before.values())
        if self.current in self.expected and self.started and self._elapsed > self.expected[self.current][0]:
            actual, expected = actual + self._elapsed, expected + self.expected[self.current][0]
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

    def _settings(self, step: Step, config: Config | None = None) -> Any:
        """Settings of a step as its manifest has them: of this run, or of another configuration."""
        return json.loads(json.dumps(step.settings(config or self.run.config), sort_keys=True))

    @cached_property
    def expected(self) -> dict[str, tuple[float, bool]]:
        """Seconds of each step at this number of patches, and whether they are of the reference machine."""
        patches, unlabelled = self.listed or Listed(0, 0)
        runs = [self.run.folder, *_newest_runs(self.run.root, self.run.folder)]
        counts = {folder: int(_read(folder / self.run.plan["prepare"].folder).get("rows", 0)) for folder in runs}
        ratios = {folder: patches / count for folder, count in counts.items() if count}
        near = [folder for folder in ratios if 1 / MOST_SCALING <= ratios[folder] <= MOST_SCALING]
        near.sort(key=lambda folder: (folder != self.run.folder, max(ratios[folder], 1 / ratios[folder])))
        speed = self._speed({folder: counts[folder] for folder in ratios})
        found: dict[str, tuple[float, bool]] = {}
        for name in self.steps:
            for folder in near if name != "prepare" else ():  # its time in this run is measured, not expected
                if (seconds := self._seconds(folder, name)) is not None:
                    found[name] = (seconds * self._growth(name, counts[folder], patches), False)
                    break
            else:
                if self._is_shipped(name):
                    seconds = self._reference(name, unlabelled if name in SIZES else patches)
                    found[name] = (seconds * (speed or 1.0), speed is None)
        return found

    def _seconds(self, folder: Path, name: str) -> float | None:
        """Seconds of a step in an earlier run, or None if it is missing or had other settings."""
        step = self.run.plan[name]
        manifest = _read(folder / step.folder)
        return manifest.get("seconds") if manifest.get("config") == self._settings(step) else None

    def _speed(self, counts: dict[Path, int]) -> float | None:
        """How many times longer the newest measured run took than the reference machine; None if there is none."""
        for folder, count in counts.items():
            times = {name: self._seconds(folder, name) for name in self.steps if name not in SIZES}
            shared = [name for name, seconds in times.items() if seconds is not None and self._is_shipped(name)]
            expected = sum(self._reference(name, count) for name in shared)
            if expected >= MEASURED_S:
                return sum(times[name] or 0.0 for name in shared) / expected
        return None

    def _growth(self, name: str, before: int, now: int) -> float:
        """How many times longer a step takes with another number of patches."""
        if name in SIZES or name not in self._table:
            return now / before
        return self._reference(name, now) / self._reference(name, before)

    @cached_property
    def _table(self) -> dict[str, tuple[float, float, float]]:
        """Seconds of the reference machine, with the preset that most steps have the settings of."""
        return BASELINE_S | (ENSEMBLE_S if "cnn" in self.steps else {}) | self._variant[1]

    @cached_property
    def _variant(self) -> tuple[Config, dict[str, tuple[float, float, float]]]:
        """The first of `VARIANTS` that most steps have the settings of: its configuration and times."""
        names = [name for name in self.steps if name != "prepare"]  # patches are always of other data
        variants = [(load_config(Path("kaggle"), changes, preset=preset), times) for preset, changes, times in VARIANTS]
        return max(variants, key=lambda variant: sum(self._is_of(name, variant[0]) for name in names))

    def _is_of(self, name: str, config: Config) -> bool:
        """Whether a step has the settings of a configuration."""
        step = self.run.plan[name]
        return bool(self._settings(step) == self._settings(step, config))

    def _reference(self, name: str, patches: int) -> float:
        """Seconds on the reference machine: straight lines through the known sizes."""
        (low, middle, high), (first, second, third) = SIZES.get(name, PATCHES), self._table[name]
        small, large = (second - first) / (middle - low), (third - second) / (high - middle)
        slope = small if patches < middle else large
        return max(second + slope * (patches - middle), first * min(1.0, patches / low))

    def _is_shipped(self, name: str) -> bool:
        """Whether a step has reference times, and the settings that they belong to."""
        if name not in self._table or name == "prepare":
            return name in self._table
        return self._is_of(name, self._variant[0])


def show_time_left(run: Run, *targets: str) -> None:
    """Show the time left until these steps of a run are up to date."""
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
