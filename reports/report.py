"""Content of the report, which is one HTML file that works offline, with its numbers as CSV files next to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from histoblend.data.patches import Patches
from histoblend.data.splits import is_known
from histoblend.models.inspection.importance import GroupView
from histoblend.models.inspection.stain import StainView
from histoblend.models.names import CONTEXT_RUNGS, SINGLE_FAMILIES
from histoblend.reports.evaluation.decisions import DEFAULT_POINT, DecisionsView
from histoblend.reports.evaluation.explorer import ExplorerView
from histoblend.reports.evaluation.ladder import roc_table, rungs_below
from histoblend.reports.evaluation.slides import score_slides
from histoblend.reports.page import figures
from histoblend.reports.page.section import Section, records
from histoblend.reports.sections.cnn import CnnView, cnn_section
from histoblend.reports.sections.data import AuditView, data_section
from histoblend.reports.sections.data_card import DataCard, card_line
from histoblend.reports.sections.decisions import decisions_section
from histoblend.reports.sections.ensemble import EnsembleView, ensemble_section
from histoblend.reports.sections.errors import errors_section
from histoblend.reports.sections.evidence import Evidence, count_tumour_slides
from histoblend.reports.sections.generalise import LearningView, generalise_section
from histoblend.reports.sections.importances import importances_section
from histoblend.reports.sections.ladder import ladder_section
from histoblend.reports.sections.provenance import made_section
from histoblend.reports.sections.stain import stain_section
from histoblend.reports.sections.verdict import judge, verdict_section
from histoblend.reports.sections.waterfalls import shown_patches


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows.

    Attributes
    ----------
    title : str
    predictions : DataFrame
        ``patch_id, slide, split, fold, label, prob_<model>``.
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    importances : DataFrame
        From :mod:`models.inspection.importance`, of any models and measures; may be empty.
    patches : Patches
        The patches of `predictions`, in any order.
    warnings : tuple of str
        Warnings about the patches and their split; reasons for caution in the verdict.
    facts : mapping
        How the report was made: nested mappings of values that have a string form.
    sentences : mapping from feature name to str
        Description of each feature.
    families : mapping from name to (columns, milliseconds)
        Number of columns of each family of handcrafted features, and its time per patch on one core.
    stain : StainView, optional
        Results on whether models rely on stain.
    phantom : bool
        Whether the patches are synthetic.
    audit : AuditView or None
        Findings of the audit.
    leakage : DataFrame or None
        Scores of folds that ignore slides; see :func:`reports.sections.data.leakage_words`.
    centres : DataFrame or None
        From :func:`reports.evaluation.centres.score_centres`, if two or more centres are known.
    ensemble : EnsembleView or None
        Results of step 6, if it ran.
    decisions : DecisionsView or None
        From :func:`reports.evaluation.decisions.decide`.
    artefacts : mapping from folder to mapping from file to str
        SHA-256 of every file that earlier steps wrote.
    card : str
        The model card in Markdown.
    explorer : ExplorerView or None
        Data for the details of each feature.
    groups : GroupView or None
        Importance of families, themes, regions and clusters of columns.
    flags : DataFrame or None
        Flags of the audit: ``patch_id`` and one bool column per flag. Dropped patches may be included.
    cnn : CnnView or None
        Training of step 5 and saliency of its network, if it ran.
    data_card : DataCard or None
        What is known about the data set besides its patches.
    shortcuts : DataFrame or None
        See :func:`reports.sections.generalise.generalise_section`.
    learning : LearningView or None
        Learning curves, if the command includes them.
    learning_omitted : bool
        Whether the command leaves learning curves out.
    """

    title: str
    predictions: pd.DataFrame
    ladder: pd.DataFrame
    importances: pd.DataFrame
    patches: Patches
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    stain: StainView | None = None
    phantom: bool = False
    audit: AuditView | None = None
    leakage: pd.DataFrame | None = None
    centres: pd.DataFrame | None = None
    ensemble: EnsembleView | None = None
    decisions: DecisionsView | None = None
    artefacts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    card: str = ""
    explorer: ExplorerView | None = None
    groups: GroupView | None = None
    flags: pd.DataFrame | None = None
    cnn: CnnView | None = None
    data_card: DataCard | None = None
    shortcuts: pd.DataFrame | None = None
    learning: LearningView | None = None
    learning_omitted: bool = False


def build_sections(inputs: ReportInputs) -> list[Section]:
    """Build every section of the report, in the order of a reader's questions."""
    predictions = inputs.predictions
    rungs = inputs.ladder[~inputs.ladder.rung.isin(SINGLE_FAMILIES)]
    models = list(rungs_below(list(dict.fromkeys(rungs.model))))
    slides = score_slides(predictions, models)
    verdict = judge(_evidence(inputs, rungs, slides))
    data = card_line(inputs.data_card or DataCard(), predictions)
    sections = [
        verdict_section(verdict, rungs, data),
        ladder_section(inputs.ladder, roc_table(predictions, models), inputs.families, inputs.centres),
        data_section(predictions, inputs.audit, inputs.leakage, inputs.data_card),
        generalise_section(inputs.shortcuts, inputs.learning, omitted=inputs.learning_omitted),
        stain_section(inputs.stain, inputs.importances, verdict.best),
        errors_section(
            predictions,
            slides,
            inputs.ladder,
            verdict.best,
            inputs.patches,
            inputs.flags,
            inputs.decisions,
            card=inputs.data_card,
        ),
        cnn_section(inputs.cnn, inputs.patches),
        decisions_section(inputs.decisions),
        ensemble_section(inputs.ensemble, inputs.ladder),
    ]
    shown = shown_patches(sections)
    importances = importances_section(inputs.importances, inputs.sentences, inputs.explorer, inputs.groups, shown=shown)
    sections.insert(1 + [section.name for section in sections].index("data"), importances)
    return [*sections, made_section(inputs.facts, sections, artefacts=inputs.artefacts, card=inputs.card)]


def _evidence(inputs: ReportInputs, rungs: pd.DataFrame, slides: pd.DataFrame) -> Evidence:
    """Collect what the verdict, the reasons for caution and the next steps are derived from."""
    predictions, ensemble = inputs.predictions, inputs.ensemble
    known = bool(predictions.slide.notna().any())
    evidence = Evidence.from_ladder(
        rungs,
        slide_map=known,
        inferred=known and not is_known(predictions.slide).any(),
        phantom=inputs.phantom,
        stain=inputs.stain.groups if inputs.stain is not None else None,
        doubts_on_ensemble=ensemble.doubts() if ensemble is not None else (),
        warnings=inputs.warnings,
        data_shown=inputs.data_card is not None,
    )
    best, rung = evidence.best["model"], evidence.best["rung"]
    enough = (slides.model == best) & (slides.rarer >= figures.FEW_PATCHES)
    decisions = inputs.decisions
    rates = {}
    if decisions is not None and decisions.model == best:
        rows = decisions.operating[decisions.operating.point == DEFAULT_POINT]
        rates = {row["split"]: row for row in records(rows)}
    return replace(
        evidence,
        rates=rates,
        tumour_slides=count_tumour_slides(predictions, best) if known else {},
        slide_aucs=slides.auc[enough].tolist(),
        slide_context=rung in CONTEXT_RUNGS or (rung == "ensemble" and ensemble is not None and ensemble.uses_slides),
    )


def facts_text(facts: Mapping[str, object]) -> str:
    """Return how the report was made, as JSON."""
    return json.dumps(_as_json(facts), indent=2, ensure_ascii=False) + "\n"


def _as_json(value: object) -> object:
    """Keep values that JSON supports, and convert others to text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, (str, int)) or value is None else str(value)
