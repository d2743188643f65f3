"""TRIPOD+AI checklist: which of its 27 items a report covers, and what its author has to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from histoblend.reports.page.section import Section

COVERED, IN_PART, MISSING = "covered", "in part", "not covered"


@dataclass(frozen=True)
class Item:
    """One item of the checklist, reworded and shortened.

    Attributes
    ----------
    number : int
        Number of the item in TRIPOD+AI.
    topic : str
    asks : str
        What the item requires.
    shown : tuple of str
        What covers the item: a section, or ``section/table`` if the item needs one of its tables.
    add : str
        What the report cannot know and its author has to write. Empty if nothing is left to write.
    """

    number: int
    topic: str
    asks: str
    shown: tuple[str, ...] = ()
    add: str = ""


#: The whole checklist; Collins et al. (2024), BMJ 385:e078378.
ITEMS = (
    Item(
        1,
        "Title",
        "development or evaluation of a model, target population, predicted outcome",
        add="A title that states these.",
    ),
    Item(2, "Abstract", "structured summary", ("verdict",), "An abstract. The verdict has the numbers for it."),
    Item(
        3,
        "Background",
        "medical setting, intended use and users, known inequalities",
        add="The clinical question, who would use the model and where, and which groups it may disadvantage.",
    ),
    Item(4, "Objectives", "aims of the study", add="The aim. This report covers development and internal testing."),
    Item(
        5,
        "Data",
        "source of the data, how representative they are, when they were collected",
        ("data",),
        "Origin of the slides, dates, and how representative they are.",
    ),
    Item(
        6,
        "Participants",
        "hospitals, eligibility, treatment",
        add="Centres, eligibility and treatment of the patients behind the slides.",
    ),
    Item(
        7,
        "Data preparation",
        "data cleaning and quality checks",
        ("data/audit", "made"),
        "Whether staining, scanning and cleaning were the same for all groups of patients.",
    ),
    Item(
        8,
        "Outcome",
        "how the true labels were established, by whom, and what these people were blinded to",
        add="How labels were made, by whom, and what else they knew. A label describes only the centre of a patch.",
    ),
    Item(9, "Predictors", "choice and measurement of predictors", ("importances", "made")),
    Item(
        10,
        "Sample size",
        "how the sample size was chosen, and whether it is sufficient",
        ("ladder", "data"),
        "Why this many slides. The widths of the intervals show how precise the results are.",
    ),
    Item(
        11,
        "Missing data",
        "what was missing and how it was handled",
        ("data",),
        "Why patches, slides or labels were missing from the source data.",
    ),
    Item(
        12,
        "Analysis methods",
        "data split, models and their tuning, validation, metrics, differences between clusters",
        ("ladder", "data", "errors", "made"),
    ),
    Item(
        13,
        "Class imbalance",
        "whether classes were balanced, and whether probabilities were recalibrated",
        ("data", "decisions", "made"),
    ),
    Item(
        14,
        "Fairness",
        "how worse performance in some groups was addressed",
        ("stain",),
        "Results by age, sex, ethnicity and centre. Stain groups are at best a proxy for scanner and laboratory.",
    ),
    Item(15, "Model output", "probability or class, thresholds and their choice", ("decisions/operating-points",)),
    Item(
        16,
        "Development and evaluation data",
        "how the two data sets differ",
        ("data", "errors"),
        "Differences in setting, eligibility and outcome, if test slides come from another source.",
    ),
    Item(17, "Ethics", "approval and consent", add="The ethics committee's approval, or why none was needed."),
    Item(
        18,
        "Open science",
        "funding, interests, protocol, registration, data and code",
        ("made",),
        "Funding, interests, protocol, registration and where to get the data. Commit and digests are in this report.",
    ),
    Item(
        19,
        "Patient and public involvement",
        "how patients and the public were involved",
        add="How they were involved, or that they were not.",
    ),
    Item(
        20,
        "Participants (results)",
        "flow and characteristics of patients, comparison of the data sets",
        ("data",),
        "The flow from patients to slides to patches, and characteristics of the patients.",
    ),
    Item(21, "Numbers in each analysis", "patches and positives in training and test sets", ("data", "ladder")),
    Item(
        22,
        "Model specification",
        "what is needed to predict with the model",
        ("made/model-card",),
        "Where to get the bundle, and its licence.",
    ),
    Item(
        23,
        "Performance",
        "discrimination and calibration with intervals, differences between clusters",
        ("ladder", "decisions/reliability", "decisions/recalibration", "decisions/decision-curve", "errors"),
    ),
    Item(24, "Model updating", "results of recalibration or refitting", ("decisions/ensemble-calibrators",)),
    Item(
        25,
        "Interpretation",
        "meaning of the results, fairness included",
        ("verdict",),
        "What the results mean for the clinical question.",
    ),
    Item(
        26,
        "Limitations",
        "weaknesses, and the bias that they may cause",
        ("verdict", "stain"),
        "Limitations of the patient sample. “Reasons for caution” lists those that the numbers show.",
    ),
    Item(
        27,
        "Use of the model",
        "poor or missing input, expertise that users need, next steps",
        ("made/model-card",),
        "Who may use the model, with what training, and which study has to come first.",
    ),
)


def checklist(sections: Sequence[Section], *, held: Mapping[str, bool] | None = None) -> pd.DataFrame:
    """List for each item whether the contents of the report's sections cover it.

    Parameters
    ----------
    sections : sequence of Section
    held : mapping from ``section`` or ``section/table`` to bool, optional
        Contents of a section besides its tables, and whether the section has them.

    Returns
    -------
    DataFrame
        ``number, topic, asks, status, sections, add``, one row per item. ``status`` is :data:`COVERED`,
        :data:`IN_PART` or :data:`MISSING`. ``sections`` has the anchors of the sections that cover the item, joined
        by spaces.

    References
    ----------
    Collins, Moons, Dhiman et al. (2024), BMJ 385:e078378.
    """
    available = {section.name: section.content is not None for section in sections}
    available |= {
        f"{section.name}/{name}": available[section.name] and len(table) > 0
        for section in sections
        for name, table in section.tables.items()
    }
    available |= held or {}
    rows = []
    for item in ITEMS:
        present = [name for name in item.shown if available.get(name, False)]
        complete = bool(present) and len(present) == len(item.shown) and not item.add
        add = item.add
        if len(present) < len(item.shown):
            missing = ", ".join(name.replace("/", ": ") for name in item.shown if name not in present)
            add = f"{add} Not in this report: {missing}.".strip()
        rows.append(
            {
                "number": item.number,
                "topic": item.topic,
                "asks": item.asks,
                "status": COVERED if complete else IN_PART if present else MISSING,
                "sections": " ".join(dict.fromkeys(name.partition("/")[0] for name in present)),
                "add": add,
            }
        )
    return pd.DataFrame(rows)
