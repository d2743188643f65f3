"""TRIPOD+AI: which of its 27 items a report covers, and what its author has to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from histoblend.reports.page.section import Section

COVERED, IN_PART, MISSING = "covered", "in part", "not covered"


@dataclass(frozen=True)
class Item:
    """One item of the checklist, in our own words.

    Attributes
    ----------
    number : int
        Of TRIPOD+AI.
    topic, asks : str
    shown : tuple of str
        What covers it: a section, or ``section/table`` where one table of it is what counts.
    add : str
        What no report can know and its author has to write; empty where nothing is left.
    """

    number: int
    topic: str
    asks: str
    shown: tuple[str, ...] = ()
    add: str = ""


#: The whole checklist; Collins et al. (2024), BMJ 385:e078378.
ITEMS = (
    Item(1, "Title", "model made or tested, for whom, predicting what", add="A title that says so."),
    Item(2, "Abstract", "structured summary", ("verdict",), "An abstract; the verdict gives its numbers."),
    Item(
        3,
        "Background",
        "medical setting, intended use and users, known inequalities",
        add="The clinical question, who would use the model and where, and whom it may disadvantage.",
    ),
    Item(
        4, "Objectives", "what the study set out to do", add="The aim; developing and internal testing is what is here."
    ),
    Item(
        5,
        "Data",
        "where the data come from, how representative, when collected",
        ("data",),
        "Origin of the slides, dates, and how representative they are.",
    ),
    Item(
        6,
        "Participants",
        "hospitals, who was eligible, what treatment they had",
        add="Centres, eligibility and treatment of the patients behind the slides.",
    ),
    Item(
        7,
        "Preparation of data",
        "cleaning and checks of quality",
        ("data/audit", "made"),
        "Whether staining, scanning and cleaning were alike for all groups of patients.",
    ),
    Item(
        8,
        "Outcome",
        "how the truth was established, by whom, blind to what",
        add="How labels were made, by whom, and whether they knew anything else; a label speaks of the centre only.",
    ),
    Item(9, "Predictors", "which were chosen, how they are measured", ("importances", "made")),
    Item(
        10,
        "Size of the sample",
        "why so many, and whether enough",
        ("ladder", "data"),
        "Why this many slides; widths of intervals say what they allow.",
    ),
    Item(
        11,
        "Missing data",
        "what was missing and what was done",
        ("data",),
        "Why patches, slides or labels were missing before they came here.",
    ),
    Item(
        12,
        "Methods of analysis",
        "partition, models and their tuning, validation, measures, spread between clusters",
        ("ladder", "data", "errors", "made"),
    ),
    Item(
        13,
        "Class imbalance",
        "whether classes were balanced, and recalibrated after",
        ("data", "decisions", "made"),
    ),
    Item(
        14,
        "Fairness",
        "what was done so that no group is served worse",
        ("stain",),
        "Results by age, sex, ethnicity and centre; stain groups stand in for scanner and laboratory at best.",
    ),
    Item(
        15, "Output of the model", "probability or class, thresholds and their choice", ("decisions/operating-points",)
    ),
    Item(
        16,
        "Development against evaluation",
        "how the two sets of data differ",
        ("data", "errors"),
        "Differences in setting, eligibility and outcome, if test slides come from elsewhere.",
    ),
    Item(17, "Ethics", "approval and consent", add="The committee's approval, or why none was needed."),
    Item(
        18,
        "Open science",
        "funding, interests, protocol, registration, data and code",
        ("made",),
        "Funding, interests, protocol, registration and where the data can be had; commit and digests are here.",
    ),
    Item(19, "Patients and public", "how they were involved", add="How they were involved, or that they were not."),
    Item(
        20,
        "Participants, results",
        "flow, characteristics, comparison of the sets",
        ("data",),
        "The flow from patients to slides to patches, and characteristics of the patients.",
    ),
    Item(21, "Numbers in each analysis", "patches and positives in training and test", ("data", "ladder")),
    Item(
        22,
        "The model itself",
        "what it takes to predict with it",
        ("made/model-card",),
        "Where the bundle can be had, and under which terms.",
    ),
    Item(
        23,
        "Performance",
        "discrimination and calibration with intervals, spread between clusters",
        ("ladder", "decisions/reliability", "decisions/decision-curve", "errors"),
    ),
    Item(24, "Updating", "what recalibration or refitting came to", ("decisions/ensemble-calibrators",)),
    Item(
        25, "Interpretation", "what it means, fairness included", ("verdict",), "What it means for the question asked."
    ),
    Item(
        26,
        "Limits",
        "weaknesses, and what they may bias",
        ("verdict", "stain"),
        "Limits of the sample of patients; those that numbers show stand under “Distrust”.",
    ),
    Item(
        27,
        "Use",
        "bad or missing input, what users must know, what comes next",
        ("made/model-card",),
        "Who may use it, with what training, and the study that has to come before.",
    ),
)


def checklist(sections: Sequence[Section], *, held: Mapping[str, bool] | None = None) -> pd.DataFrame:
    """Say of each item whether the report covers it, from what its sections really hold.

    Parameters
    ----------
    sections : sequence of Section
    held : mapping from ``section`` or ``section/table`` to bool, optional
        What a section holds beside its tables.

    Returns
    -------
    DataFrame
        ``number, topic, asks, status, sections, add``, a row an item; status is one of :data:`COVERED`,
        :data:`IN_PART` and :data:`MISSING`, and ``sections`` the anchors of those that cover it, joined by spaces.

    References
    ----------
    Collins, Moons, Dhiman et al. (2024), BMJ 385:e078378.
    """
    found = {section.name: section.content is not None for section in sections}
    found |= {
        f"{section.name}/{name}": found[section.name] and len(table) > 0
        for section in sections
        for name, table in section.tables.items()
    }
    found |= held or {}
    rows = []
    for item in ITEMS:
        here = [name for name in item.shown if found.get(name, False)]
        whole = bool(here) and len(here) == len(item.shown) and not item.add
        add = item.add
        if len(here) < len(item.shown):
            empty = ", ".join(name.replace("/", ": ") for name in item.shown if name not in here)
            add = f"{add} Not in this report: {empty}.".strip()
        rows.append(
            {
                "number": item.number,
                "topic": item.topic,
                "asks": item.asks,
                "status": COVERED if whole else IN_PART if here else MISSING,
                "sections": " ".join(dict.fromkeys(name.partition("/")[0] for name in here)),
                "add": add,
            }
        )
    return pd.DataFrame(rows)
