"""A run whose steps are already finished, in any folders."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from histoblend.models.heads.registry import load_head
from histoblend.pipelines.runtime.artefacts import FinishedStep
from histoblend.pipelines.runtime.screen import Screen


class StubRun:
    """Replacement for a run.

    Parameters
    ----------
    config : Config
    steps : mapping from str to Path or (Path, dict)
        Folder of each existing step, and its manifest.
    **opened
        Cached results of readers, by the name of the cache entry.
    """

    def __init__(self, config: Any, steps: Mapping[str, Any], **opened: Any) -> None:
        self.config, self.opened, self.workers, self.screen = config, opened, 2, Screen()
        self.steps = {name: step if isinstance(step, tuple) else (step, {}) for name, step in steps.items()}

    def has(self, name: str) -> bool:
        return name in self.steps

    def step(self, name: str) -> FinishedStep:
        return FinishedStep(*self.steps[name])

    def open(self, name: str, reader: Callable[[], Any]) -> Any:
        return self.opened[name] if name in self.opened else reader()


class StoredHeads:
    """Replacement for the models of a run: heads in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def head(self, name: str) -> Any:
        return load_head(self.folder / name)
