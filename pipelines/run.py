"""One run: its configuration, its folder, and the steps that are finished."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from histoblend.data.workers import count_workers
from histoblend.pipelines.config import Config
from histoblend.pipelines.runtime.artefacts import Finished, Outcome, StepSpec, run_step
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.engine.cluster import Cluster

_Content = TypeVar("_Content")


def _no_settings(config: Config) -> Mapping[str, Any]:
    return {}


def _no_inputs(run: Run) -> Mapping[str, str]:
    return {}


def _always(run: Run) -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """A row of the plan: how a folder of a run comes about, and what it depends on.

    Attributes
    ----------
    name : str
    folder : str
        In the folder of the run.
    build : str
        ``module:function`` in the package, which fills the folder that it is given; imported when it is needed.
    reads : tuple of str
        Steps whose results it reads, as far as they are part of the run.
    code : tuple of str
        Folders, files and patterns in the package whose code can change its values.
    settings : callable
        The part of the configuration that it depends on. With another one the step is refused, not rebuilt.
    inputs : callable
        Digests of what else it depends on, by name. When one changes, the step is rebuilt.
    part_of : callable
        Whether the configuration and the data of a run call for it.
    """

    name: str
    folder: str
    build: str
    reads: tuple[str, ...]
    code: tuple[str, ...]
    settings: Callable[[Config], Mapping[str, Any]] = _no_settings
    inputs: Callable[[Run], Mapping[str, str]] = _no_inputs
    part_of: Callable[[Run], bool] = _always

    @property
    def builder(self) -> Callable[[Run, Path], Outcome]:
        """The function behind ``build``."""
        found: Callable[[Run, Path], Outcome] = pkgutil.resolve_name(f"histoblend.{self.build}")
        return found


@dataclass
class Run:
    """One run folder and the steps in it; a step first brings the steps that it reads up to date.

    Attributes
    ----------
    config : Config
    root : Path
        Folder of all runs; this one is in ``root / config.name``.
    plan : mapping from str to Step
    rebuild : bool
        Replace results that were made with another configuration instead of refusing.
    screen : Screen
    finished : dict from str to Finished
        Steps that are up to date.
    """

    config: Config
    root: Path
    plan: Mapping[str, Step]
    rebuild: bool = False
    screen: Screen = field(default_factory=Screen)
    _left_out: frozenset[str] = frozenset()
    finished: dict[str, Finished] = field(default_factory=dict, repr=False)
    _opened: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Where this run's artefacts are."""
        return self.root / self.config.name

    @cached_property
    def workers(self) -> int:
        """Workers to use: as configured, or one for each core that this process may use."""
        return count_workers(self.config.engine.workers)

    @cached_property
    def cluster(self) -> Cluster | None:
        """The cluster that the configuration names; None where work stays on this machine."""
        if self.config.engine.scheduler == "local":
            return None
        from histoblend.pipelines.engine.cluster import Cluster

        return Cluster(self.config.engine, self.folder, self.workers, self.screen)

    def close(self) -> None:
        """Disconnect from the cluster, if there is one."""
        if self.cluster is not None:
            self.cluster.close()

    def leave_out(self, names: Iterable[str]) -> None:
        """Choose the steps that are not part of this run, whatever its configuration says."""
        if self._left_out != frozenset(names):
            self._left_out = frozenset(names)
            self.finished.clear()
            self._opened.clear()

    def has(self, name: str) -> bool:
        """Whether a step is part of this run."""
        return name not in self._left_out and self.plan[name].part_of(self)

    def step(self, name: str) -> Finished:
        """Bring a step, and what it reads, up to date.

        Raises
        ------
        InputError
            The step's folder was made with another configuration, and ``rebuild`` is not set.
        """
        if name not in self.finished:
            step = self.plan[name]
            inputs = {self.plan[read].folder: self.step(read).digest for read in step.reads if self.has(read)}
            spec = StepSpec(
                name,
                step.folder,
                step.code,
                step.settings(self.config),
                {**inputs, **step.inputs(self)},
                self.config.seed,
            )
            self.finished[name] = run_step(
                spec,
                self.folder,
                lambda folder: step.builder(self, folder),
                rebuild=self.rebuild,
                say=self.screen.say,
            )
        return self.finished[name]

    def open(self, name: str, reader: Callable[[], _Content]) -> _Content:
        """What a reader returns, read once for the whole run and kept under a name."""
        if name not in self._opened:
            self._opened[name] = reader()
        content: _Content = self._opened[name]
        return content
