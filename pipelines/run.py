"""One run: its configuration, its folder, and its finished steps."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from histoblend.data.workers import count_workers
from histoblend.pipelines.config import Config
from histoblend.pipelines.runtime.artefacts import FinishedStep, StepResult, StepSpec, run_step
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


def _unmeasured(step: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Step:
    """A step of the plan: how a folder of a run is built, and what it depends on.

    Attributes
    ----------
    name : str
    folder : str
        Path relative to the folder of the run.
    build : str
        ``module:function`` in the package. The function fills a given folder. It is imported when needed.
    reads : tuple of str
        Steps whose results it reads. Steps that are not part of the run are skipped.
    code : tuple of str
        Folders, files and patterns in the package whose code can change its values.
    settings : callable
        Returns the part of the configuration that it depends on. If that part changes, the step is refused, not
        rebuilt.
    inputs : callable
        Returns digests of its other inputs, by name. If one changes, the step is rebuilt.
    is_needed : callable
        Returns whether the step is needed for the configuration and data of a run.
    """

    name: str
    folder: str
    build: str
    reads: tuple[str, ...]
    code: tuple[str, ...]
    settings: Callable[[Config], Mapping[str, Any]] = _no_settings
    inputs: Callable[[Run], Mapping[str, str]] = _no_inputs
    is_needed: Callable[[Run], bool] = _always

    @property
    def builder(self) -> Callable[[Run, Path], StepResult]:
        """The function behind ``build``."""
        function: Callable[[Run, Path], StepResult] = pkgutil.resolve_name(f"histoblend.{self.build}")
        return function


class Listed(NamedTuple):
    """Numbers of patches that a data set lists, before any is decoded."""

    labelled: int
    unlabelled: int


@dataclass
class Run:
    """A run folder and its steps. Before a step is built, the steps that it reads are brought up to date.

    Attributes
    ----------
    config : Config
    root : Path
        Folder of all runs. This run is in ``root / config.name``.
    plan : mapping from str to Step
    rebuild : bool
        Whether to replace results that were made with another configuration, instead of refusing.
    screen : Screen
    finished : dict from str to FinishedStep
        Steps that are up to date.
    listed : Listed or None
        Patches that step ``prepare`` found, once it has started.
    building : callable
        Makes the context in which a step is built, given its name; :mod:`pipelines.forecast` measures steps with it.
    """

    config: Config
    root: Path
    plan: Mapping[str, Step]
    rebuild: bool = False
    screen: Screen = field(default_factory=Screen)
    _left_out: frozenset[str] = frozenset()
    finished: dict[str, FinishedStep] = field(default_factory=dict, repr=False)
    listed: Listed | None = None
    building: Callable[[str], AbstractContextManager[None]] = field(default=_unmeasured, repr=False)
    _opened: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Folder of this run's artefacts."""
        return self.root / self.config.name

    @cached_property
    def workers(self) -> int:
        """Number of workers: as configured, by default one per core that this process may use."""
        return count_workers(self.config.engine.workers)

    @cached_property
    def cluster(self) -> Cluster | None:
        """The configured cluster; None if all work is done on this machine."""
        if self.config.engine.scheduler == "local":
            return None
        from histoblend.pipelines.engine.cluster import Cluster

        return Cluster(self.config.engine, self.folder, self.workers, self.screen)

    def close(self) -> None:
        """Disconnect from the cluster, if there is one."""
        if self.cluster is not None:
            self.cluster.close()

    def leave_out(self, names: Iterable[str]) -> None:
        """Choose steps that are not part of this run, even if the configuration includes them."""
        if self._left_out != frozenset(names):
            self._left_out = frozenset(names)
            self.finished.clear()
            self._opened.clear()

    def has(self, name: str) -> bool:
        """Whether a step is part of this run."""
        return name not in self._left_out and self.plan[name].is_needed(self)

    def step(self, name: str) -> FinishedStep:
        """Bring a step and its inputs up to date.

        Raises
        ------
        InputError
            The step's folder was made with another configuration, and ``rebuild`` is False.
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
                lambda folder: self._build(step, folder),
                rebuild=self.rebuild,
                say=self.screen.say,
            )
        return self.finished[name]

    def _build(self, step: Step, folder: Path) -> StepResult:
        with self.building(step.name):
            return step.builder(self, folder)

    def open(self, name: str, reader: Callable[[], _Content]) -> _Content:
        """Call a reader once per run, and cache its result under a name."""
        if name not in self._opened:
            self._opened[name] = reader()
        content: _Content = self._opened[name]
        return content
