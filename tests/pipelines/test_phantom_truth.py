"""Importances against the truth that made the phantom, and the report's word on stain."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from histoblend.data.phantom.patches import phantom
from histoblend.data.splits import assign_splits, patch_groups
from histoblend.features.handcrafted import families
from histoblend.models.heads.registry import new_head
from histoblend.models.inspection.importance import COLUMNS as IMPORTANCE_COLUMNS
from histoblend.models.inspection.permutation import dropped_importance, group_permutation
from histoblend.models.inspection.stain import StainView, shift_curves, stain_families, stain_groups
from histoblend.models.inspection.stain_shifts import alterations
from histoblend.models.resampling import slide_groups
from histoblend.pipelines.analysis.stain import choose_sample, slide_names
from histoblend.pipelines.steps.heads import refit_without
from histoblend.reports.sections.stain import stain_section
from tests.pipelines.fits import local

FAMILIES = ("colour", "stain", "nuclei")
COLUMNS = [column.name for column in families.columns(FAMILIES)]


@cache
def cohort(confound):
    """Features and split of a phantom: its tumour nuclei are larger, paler, less regular; stain is the scanner's."""
    drawn = plan(confound)
    split = assign_splits(drawn.table, test_share=0.3, folds=3, seed=0)
    return families.compute(drawn.render(0, len(drawn)), FAMILIES), split


def plan(confound):
    return phantom(1000, slides=30, seed=3, confound=confound)


@cache
def altered(confound):
    """What heads on colour and on nuclei say of held-out patches whose stains were altered; and the section's view."""
    values, split = cohort(confound)
    groups = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"])
    train = (split["split"] == "train").to_numpy()
    labels = split["label"].to_numpy()[train]
    places = {f"logistic_{family}": [i for i, name in enumerate(COLUMNS) if name.startswith(f"{family}_")]
              for family in ("colour", "nuclei")}  # fmt: skip
    heads = {
        model: new_head("logistic", 0).fit(values[train][:, columns], labels, patch_groups(split)[train])
        for model, columns in places.items()
    }
    sample = choose_sample(split, seed=0)
    rows = sample.rows[: sample.judged]
    part = split.iloc[rows].reset_index(drop=True)
    pixels = np.concatenate([plan(confound).render(row, row + 1) for row in rows])
    found = []
    for alter in alterations(slide_names(part), groups, seed=0):
        table_of = families.compute(alter(pixels), FAMILIES)
        scores = {f"prob_{name}": heads[name].predict_proba(table_of[:, places[name]])[:, 1] for name in heads}
        how = {"alteration": alter.kind, "strength": alter.strength, "draw": alter.draw}
        found.append(part[["patch_id", "slide", "label"]].assign(**how, **scores))
    curves = shift_curves(pd.concat(found), list(heads), dict.fromkeys(heads, 0.5), draws=500)
    return StainView(
        groups, families=stain_families(values, COLUMNS, groups, split["slide"], draws=200), shifted=curves
    )


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
@pytest.mark.parametrize(("confound", "leading", "other"), [(0.0, "nuclei", "colour"), (0.9, "colour", "nuclei")])
def test_the_planted_cause_leads(confound, leading, other, head):
    values, split = cohort(confound)
    train = (split["split"] == "train").to_numpy()
    labels, groups = split["label"].to_numpy(), patch_groups(split)
    fitted = new_head(head, 0).fit(values[train], labels[train], groups[train])
    found, _ = group_permutation(
        lambda X: fitted.predict_proba(X)[:, 1],
        values[~train],
        labels[~train],
        families.group_columns(COLUMNS, "theme"),
        slide_groups(split["slide"][~train]),
        kind="theme",
    )
    found = found.set_index("group")
    assert found.value[leading] > found.value[other] + 0.005, found[["value", "low", "high"]]
    assert found.low[leading] > 0


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_only_nuclei_are_missed_when_left_out_and_fitted_again(head):
    """Colour that is unrelated to the label is not missed, whatever the model made of it."""
    values, split = cohort(0.0)
    test = (split["split"] == "test").to_numpy()
    units = families.group_columns(COLUMNS, "theme")
    scores = refit_without([head], local(values), units | {"nothing": []}, split, seed=0)
    full, *without = (scores[f"{head}_handcrafted_without_{name}"] for name in ("nothing", *units))
    found = dropped_importance(
        split["label"].to_numpy()[test],
        full,
        dict(zip(units, without, strict=True)),
        units,
        slide_groups(split["slide"][test]),
        kind="theme",
    ).set_index("group")
    assert found.value.idxmax() == "nuclei"
    assert found.low["nuclei"] > 0.03, found[["value", "low", "high"]]
    assert found.value.drop("nuclei").max() < 0.01, found[["value", "low", "high"]]


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_the_centre_leads_where_tumour_lies_on_either_side_of_its_border(head):
    """Over all patches the whole patch leads: most that hold tumour anywhere hold it in the centre.

    Among patches that hold tumour, in the centre (positive) or around it only (negative), the centre's nuclei decide.
    """
    values, split = cohort(0.0)
    train = (split["split"] == "train").to_numpy()
    labels, groups = split["label"].to_numpy(), patch_groups(split)
    fitted = new_head(head, 0).fit(values[train], labels[train], groups[train])
    judged = ~train & ((labels == 1) | split["tumour_in_ring"].to_numpy(dtype=bool))
    found, _ = group_permutation(
        lambda X: fitted.predict_proba(X)[:, 1],
        values[judged],
        labels[judged],
        families.group_columns(COLUMNS, "region"),
        slide_groups(split["slide"][judged]),
        kind="region",
    )
    found = found.set_index("group")
    assert found.value.idxmax() == "centre", found[["value", "low", "high"]]
    assert found.low["centre"] > 0.02
    assert abs(found.value["ring"]) < 0.01


@pytest.mark.parametrize(("confound", "doubted"), [(0.0, False), (0.9, True)])
def test_stain_is_doubted_where_scanner_and_tumour_go_together(confound, doubted):
    values, split = cohort(confound)
    found = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"])
    assert found.confounded is doubted, found.words()


def test_the_stain_groups_are_the_scanners():
    values, split = cohort(0.0)
    groups = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"]).slides.set_index("slide").group
    domains = split.drop_duplicates("slide").set_index("slide")["domain"].loc[groups.index]
    agreement = np.mean((groups == "A") == (domains == "scanner-a"))
    assert max(agreement, 1 - agreement) >= 0.9


def changes(view):
    """Change of AUC of each model where stains were exchanged, and where they were shifted most."""
    last = view.shifted[view.shifted.strength >= 0.2]
    return {(row.alteration, row.model): row for row in last.itertuples()}


def test_exchanged_stains_turn_a_head_round_that_knows_the_scanner():
    found = changes(altered(0.9))
    colour, nuclei = found["restain", "logistic_colour"], found["restain", "logistic_nuclei"]
    assert colour.change_high < -0.1, colour
    assert colour.auc < 0.6
    assert nuclei.change > -0.1
    assert colour.change < nuclei.change - 0.3


def test_where_scanner_and_tumour_are_unrelated_nuclei_do_not_mind_any_stain():
    found = changes(altered(0.0))
    for alteration in ("shift", "restain"):
        assert abs(found[alteration, "logistic_nuclei"].change) < 0.03
    # What colours say of tumour is drowned by such shifts: a loss, but no head is turned round by the other stain.
    assert found["shift", "logistic_colour"].change_high < 0.0
    assert found["restain", "logistic_colour"].auc > 0.5


@pytest.mark.parametrize(("confound", "caught"), [(0.0, False), (0.9, True)])
def test_the_section_catches_the_confounded_phantom(confound, caught):
    view = altered(confound)
    rows = [("logistic_handcrafted", "permutation", None, "colour", None, None, None, 0.1, 0.0, 0.05, 0.2)]
    section = stain_section(view, pd.DataFrame(rows, columns=IMPORTANCE_COLUMNS), "logistic_colour")
    assert view.groups.confounded is caught
    content = section.content
    assert content["families"]["words"].endswith("so the doubt is serious.") is caught
    assert "logistic regression on all handcrafted features loses 0.100" in content["families"]["words"]
    lost = "logistic regression on colour loses" in content["shifts"]["restained"]
    assert lost or not caught
    # Colours tell the scanners apart; what the nuclei know of them is less.
    aucs = view.families.set_index("family").auc
    assert aucs["colour"] > 0.9
    assert aucs["nuclei"] < aucs["colour"]
