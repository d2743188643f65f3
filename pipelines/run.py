"""One run: its configuration, its folder, and the steps that are finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.pipelines.config import Config
from histoblend.pipelines.runtime.artefacts import manifest_digest, run_step
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.engine.cluster import Cluster
    from histoblend.pipelines.engine.fits import Fitters
    from histoblend.pipelines.tables import FeatureSets


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
    combined : bool
        Whether the report and the stable outputs hold the ensemble.
    """

    config: Config
    root: Path
    rebuild: bool = False
    screen: Screen = field(default_factory=Screen)
    combined: bool = False

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
    def cluster(self) -> Cluster | None:
        """The cluster that the configuration names; None where work stays on this machine."""
        if self.config.engine.scheduler == "local":
            return None
        from histoblend.pipelines.engine.cluster import Cluster

        return Cluster(self.config.engine, self.folder, self.workers, self.screen)

    def close(self) -> None:
        """Let go of the cluster, where there is one."""
        if self.cluster is not None:
            self.cluster.close()

    @cached_property
    def prepared(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the prepared patches."""
        from histoblend.pipelines.steps.patches import prepare, prepare_spec, split_warnings

        def build(folder: Path) -> Any:
            return prepare(self.config, folder, workers=self.workers, screen=self.screen)

        self._check_names()
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
        from histoblend.pipelines.steps.features import extract_features, features_spec

        def build(folder: Path) -> Any:
            options: dict[str, Any] = {"workers": self.workers, "screen": self.screen, "cluster": self.cluster}
            return extract_features(self.config, self.patches, folder, **options)

        return self._step(features_spec(self.config, manifest_digest(self.prepared[1])), build)

    @cached_property
    def embeddings(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the embeddings."""
        from histoblend.pipelines.steps.embeddings import embeddings_spec, extract_embeddings

        def build(folder: Path) -> Any:
            options: dict[str, Any] = {"workers": self.workers, "screen": self.screen, "cluster": self.cluster}
            return extract_embeddings(self.config, self.patches, folder, **options)

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

    def sets(self) -> FeatureSets:
        """Values and column names of each configured set of columns."""
        from histoblend.pipelines.tables import FeatureSets

        folders = {name: folder for name, (folder, _) in self.tables.items()}
        return FeatureSets(self.config, folders, self.patches.table["slide"])

    @cached_property
    def heads(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the fitted heads."""
        from histoblend.pipelines.steps.heads import fit_heads, heads_spec
        from histoblend.pipelines.tables import check_finite

        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in [self.prepared, *self.tables.values()]}
        # A fit on a spread table differs in its last digits from one in memory.
        inputs |= {f"spread {name}": "yes" for name in self._spread_sets()}

        def build(folder: Path) -> Any:
            for table, _ in self.tables.values():
                check_finite(table, self.patches.table)
            sets = self.sets()
            columns = {name: sets.columns(name) for name in sets}
            return fit_heads(self.config, self.patches, columns, self._fitters(folder), folder, self.screen)

        return self._step(heads_spec(self.config, inputs), build)

    def _spread_sets(self) -> list[str]:
        """Sets of columns whose table is spread over a cluster's memories."""
        from histoblend.pipelines.engine.cluster_fits import is_spread

        if self.cluster is None:
            return []
        sets, rows = self.sets(), len(self.patches.table)
        return [name for name in sets if is_spread(self.config.engine.heads, (rows, len(sets.columns(name))))]

    def _fitters(self, folder: Path) -> Fitters:
        """What fits heads: this machine, or the cluster."""
        from histoblend.pipelines.engine.cluster_fits import cluster_fitters
        from histoblend.pipelines.engine.fits import local_fitters
        from histoblend.pipelines.steps.heads import check_room

        if self.cluster is not None:
            return cluster_fitters(self.cluster, self.config.engine.heads, self.sets(), folder)
        fits = min(self.workers, self.config.split.folds + 1)
        return local_fitters(self.sets(), self.workers, lambda name, values: check_room(name, values, fits))

    @cached_property
    def cnn(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the fine-tuned network."""
        from histoblend.pipelines.steps.cnn import cnn_spec, train_cnn

        def build(folder: Path) -> Any:
            return train_cnn(self.config, self.patches, folder, workers=self.workers, screen=self.screen)

        return self._step(cnn_spec(self.config, manifest_digest(self.prepared[1])), build)

    @cached_property
    def saliency_probe(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the fine-tuned network's maps of evidence."""
        from histoblend.pipelines.analysis.saliency import probe_saliency, saliency_spec

        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in (self.prepared, self.cnn)}

        def build(folder: Path) -> Any:
            return probe_saliency(self.config, self.patches, self.cnn[0], folder, self.screen)

        return self._step(saliency_spec(self.config, inputs), build)

    @property
    def fine_tuned(self) -> bool:
        """Whether a fine-tuned network is a part of the report and of the stable outputs."""
        return self.combined and self.config.cnn.enabled

    def member_predictions(self) -> Any:
        """Predictions of every head and, where it is part of the run, of the network, as a DataFrame a row a patch."""
        import pandas as pd

        from histoblend.pipelines.layout import PREDICTIONS

        members = pd.read_parquet(self.heads[0] / PREDICTIONS)
        if not self.fine_tuned:
            return members
        return members.merge(pd.read_parquet(self.cnn[0] / PREDICTIONS), on="patch_id", validate="one_to_one")

    @cached_property
    def ensemble(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the ensemble."""
        from histoblend.models.names import ALONE
        from histoblend.pipelines.steps.ensemble import combine, ensemble_spec, member_names

        steps = [self.prepared, self.heads, *([self.cnn] if self.fine_tuned else [])]
        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in steps}

        def build(folder: Path) -> Any:
            predictions = self.member_predictions()
            members = member_names(predictions, ALONE)
            return combine(self.config, self.patches.table, predictions, members, folder, self.screen)

        return self._step(ensemble_spec(self.config, inputs), build)

    def last_steps(self) -> list[tuple[Path, dict[str, Any]]]:
        """Folder and manifest of the network and of the ensemble, as far as they are part of the run."""
        return [*([self.cnn] if self.fine_tuned else []), *([self.ensemble] if self.combined else [])]

    def predictions(self) -> Any:
        """Predictions of every model that the report shows, as a DataFrame a row a patch."""
        import pandas as pd

        from histoblend.pipelines.layout import PREDICTIONS

        members = self.member_predictions()
        if not self.combined:
            return members
        return members.merge(pd.read_parquet(self.ensemble[0] / PREDICTIONS), on="patch_id", validate="one_to_one")

    @cached_property
    def stain_probe(self) -> tuple[Path, dict[str, Any]] | None:
        """Folder and manifest of what models say of shifted stains; None where no held-out slides can be judged."""
        from histoblend.pipelines.analysis.stain import probe_stain, stain_spec, why_no_probe

        if why_no_probe(self.patches.table):
            return None
        steps = [self.prepared, self.heads, *self.tables.values(), *self.last_steps()]
        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in steps}

        def build(folder: Path) -> Any:
            return probe_stain(self, folder)

        return self._step(stain_spec(self.config, inputs), build)

    def probes(self) -> list[tuple[Path, dict[str, Any]]]:
        """Folder and manifest of what the report asks of finished models, as far as it can be asked."""
        saliency = self.saliency_probe if self.fine_tuned else None
        return [probe for probe in (self.stain_probe, saliency) if probe is not None]

    @cached_property
    def report(self) -> tuple[Path, dict[str, Any]]:
        """Folder and manifest of the report; also writes the run's stable outputs."""
        from histoblend.pipelines.steps.report import make_report, publish, report_spec

        steps = [self.prepared, self.heads, *self.tables.values(), *self.last_steps()]
        inputs = {folder.name: manifest_digest(manifest) for folder, manifest in steps}
        inputs |= {f"probes/{folder.name}": manifest_digest(manifest) for folder, manifest in self.probes()}

        def build(folder: Path) -> Any:
            return make_report(self, folder)

        folder, manifest = self._step(report_spec(self.config, inputs), build)
        publish(self, folder)
        return folder, manifest

    def _check_names(self) -> None:
        """Find a wrong name before hours of work, not after."""
        from histoblend.pipelines.steps.embeddings import check_embeddings
        from histoblend.pipelines.tables import chosen_families

        check_embeddings(self.config)
        if self.fine_tuned:
            from histoblend.pipelines.steps.cnn import check_cnn

            check_cnn(self.config)
        if "colour" in self.config.heads.features and "colour" not in chosen_families(self.config):
            raise InputError(
                "heads.features asks for 'colour', but features.families leaves that family out. "
                "Add it, or choose the sets: --set 'heads.features=[\"handcrafted\"]'."
            )

    def _step(self, spec: Any, build: Callable[[Path], Any]) -> tuple[Path, dict[str, Any]]:
        return run_step(spec, self.folder, build, rebuild=self.rebuild, say=self.screen.say)
