"""The road from images to a table of numbers: steps in order, each run only when something it depends on changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.patches import PatchSet
from pipelines.artefacts import manifest_digest, run_step
from pipelines.config import Config
from pipelines.console import Screen

#: Steps of the baseline in order: name on the command line, and what it leaves behind.
STEPS = {
    "prepare": "decode every patch once, split by slide",
    "features": "handcrafted colour and texture features",
    "embeddings": "pretrained network embeddings",
    "heads": "logistic and XGBoost heads, out of fold and on the held-out slides",
    "report": "ladder, importances, report.html and bundle",
}


@dataclass
class Run:
    """One run folder and the steps in it; a step first brings the steps that it reads up to date.

    Attributes
    ----------
    config : Config
    root : Path
        Folder of all runs; this one lives in ``root / config.name``.
    rebuild : bool
        Replace results that were made with another configuration instead of refusing.
    screen : Screen
    """

    config: Config
    root: Path
    rebuild: bool = False
    screen: Screen = field(default_factory=Screen)

    @property
    def folder(self) -> Path:
        """Where this run's artefacts lie."""
        return self.root / self.config.name

    @cached_property
    def workers(self) -> int:
        """Workers to use: as configured, or one for each core that this process may use."""
        from joblib import cpu_count

        return self.config.engine.workers or int(cpu_count())

    @cached_property
    def prepared(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the prepared patches."""
        from pipelines.prepare import prepare, prepare_spec, split_warnings

        def build(folder: Path) -> Any:
            return prepare(self.config, folder, workers=self.workers, screen=self.screen)

        folder, manifest = self._step(prepare_spec(self.config), build)
        for warning in split_warnings(PatchSet.open(folder).table, manifest["notes"]["set_aside"]):
            self.screen.warn(warning)
        return folder, manifest

    @cached_property
    def patches(self) -> PatchSet:
        """The prepared patches."""
        return PatchSet.open(self.prepared[0])

    @cached_property
    def features(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the handcrafted features."""
        from pipelines.tables import extract_features, features_spec

        def build(folder: Path) -> Any:
            return extract_features(self.config, self.patches, folder, workers=self.workers, screen=self.screen)

        return self._step(features_spec(self.config, manifest_digest(self.prepared[1])), build)

    @cached_property
    def embeddings(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the embeddings."""
        from pipelines.tables import embeddings_spec, extract_embeddings

        def build(folder: Path) -> Any:
            return extract_embeddings(self.config, self.patches, folder, workers=self.workers, screen=self.screen)

        return self._step(embeddings_spec(self.config, manifest_digest(self.prepared[1])), build)

    @cached_property
    def tables(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """The feature tables that the configured sets of columns need."""
        wanted = set(self.config.heads.features)
        tables = {}
        if wanted - {"embeddings"}:
            tables["features"] = self.features
        if wanted & {"embeddings", "both"}:
            tables["embeddings"] = self.embeddings
        return tables

    @cached_property
    def heads(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the fitted heads."""
        from pipelines.fitting import fit_heads, heads_spec
        from pipelines.tables import feature_sets

        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in [self.prepared, *self.tables.values()]}

        def build(folder: Path) -> Any:
            sets = feature_sets(self.config, {name: place for name, (place, _) in self.tables.items()})
            return fit_heads(self.config, self.patches, sets, folder, workers=self.workers, screen=self.screen)

        return self._step(heads_spec(self.config, inputs), build)

    @cached_property
    def report(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the report; also writes the run's stable outputs."""
        from pipelines.reporting import make_report, publish, report_spec

        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in [self.heads, *self.tables.values()]}

        def build(folder: Path) -> Any:
            return make_report(self, folder)

        folder, manifest = self._step(report_spec(self.config, inputs), build)
        publish(self, folder)
        return folder, manifest

    def _step(self, spec: Any, build: Callable[[Path], Any]) -> tuple[Path, dict[str, Any]]:
        return run_step(spec, self.folder, build, rebuild=self.rebuild, say=self.screen.say)


def baseline(run: Run) -> None:
    """Bring every step up to date and show the ladder."""
    from pipelines.reporting import show_ladder

    folder, _ = run.report
    show_ladder(run)
    run.screen.say(f"report: {folder / 'report.html'}")


def one_step(run: Run, name: str) -> Path:
    """Bring one step, and what it reads, up to date; return its folder."""
    return {
        "prepare": lambda: run.prepared,
        "features": lambda: run.features,
        "embeddings": lambda: run.embeddings,
        "heads": lambda: run.heads,
        "report": lambda: run.report,
    }[name]()[0]
