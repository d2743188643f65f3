"""Importances and the stain section agree with the known truth of the phantom."""

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
    """Features and split of a phantom. Tumour nuclei are larger, paler, less regular; stain depends on the scanner."""
    drawn = plan(confound)
    split = assign_splits(drawn.table, test_share=0.3, folds=3, seed=0)
    return families.compute(drawn.render(0, len(drawn)), FAMILIES), split


def plan(confound):
    return phantom(1000, slides=30, seed=3, confound=confound)


@cache
def altered(confound):
    """The stain view, with predictions of heads on colour and on nuclei for held-out patches with altered stains."""
    values, split = cohort(confound)
    groups = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"])
    train = (split["split"] == "train").to_numpy()
    labels = split["label"].to_numpy()[train]
    columns_of = {f"logistic_{family}": [i for i, name in enumerate(COLUMNS) if name.startswith(f"{family}_")]
              for family in ("colour", "nuclei")}  # fmt: skip
    heads = {
        model: new_head("logistic", 0).fit(values[train][:, columns], labels, patch_groups(split)[train])
        for model, columns in columns_of.items()
    }
    sample = choose_sample(split, seed=0)
    rows = sample.rows[: sample.n_predicted]
    part = split.iloc[rows].reset_index(drop=True)
    pixels = np.concatenate([plan(confound).render(row, row + 1) for row in rows])
    tables = []
    for alter in alterations(slide_names(part), groups, seed=0):
        features = families.compute(alter(pixels), FAMILIES)
        scores = {f"prob_{name}": heads[name].predict_proba(features[:, columns_of[name]])[:, 1] for name in heads}
        how = {"alteration": alter.kind, "strength": alter.strength, "draw": alter.draw}
        tables.append(part[["patch_id", "slide", "label"]].assign(**how, **scores))
    curves = shift_curves(pd.concat(tables), list(heads), dict.fromkeys(heads, 0.5), draws=500)
    return StainView(
        groups, families=stain_families(values, COLUMNS, groups, split["slide"], draws=200), shifted=curves
    )


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
@pytest.mark.parametrize(("confound", "leading", "other"), [(0.0, "nuclei", "colour"), (0.9, "colour", "nuclei")])
def test_the_planted_cause_is_most_important(confound, leading, other, head):
    values, split = cohort(confound)
    train = (split["split"] == "train").to_numpy()
    labels, groups = split["label"].to_numpy(), patch_groups(split)
    fitted = new_head(head, 0).fit(values[train], labels[train], groups[train])
    table, _ = group_permutation(
        lambda X: fitted.predict_proba(X)[:, 1],
        values[~train],
        labels[~train],
        families.group_columns(COLUMNS, "theme"),
        slide_groups(split["slide"][~train]),
        kind="theme",
    )
    table = table.set_index("group")
    assert table.value[leading] > table.value[other] + 0.005, table[["value", "low", "high"]]
    assert table.low[leading] > 0


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_only_a_refit_without_nuclei_loses_auc(head):
    """A refit without colour loses nothing, because colour is unrelated to the label."""
    values, split = cohort(0.0)
    test = (split["split"] == "test").to_numpy()
    units = families.group_columns(COLUMNS, "theme")
    scores = refit_without([head], local(values), units | {"nothing": []}, split, seed=0)
    full, *without = (scores[f"{head}_handcrafted_without_{name}"] for name in ("nothing", *units))
    table = dropped_importance(
        split["label"].to_numpy()[test],
        full,
        dict(zip(units, without, strict=True)),
        units,
        slide_groups(split["slide"][test]),
        kind="theme",
    ).set_index("group")
    assert table.value.idxmax() == "nuclei"
    assert table.low["nuclei"] > 0.03, table[["value", "low", "high"]]
    assert table.value.drop("nuclei").max() < 0.01, table[["value", "low", "high"]]


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_the_centre_is_most_important_for_patches_with_tumour_in_or_around_it(head):
    """The centre's nuclei distinguish tumour in the centre (positive) from tumour only around it (negative).

    Over all patches the whole patch is most important, because most patches with tumour have it in the centre.
    """
    values, split = cohort(0.0)
    train = (split["split"] == "train").to_numpy()
    labels, groups = split["label"].to_numpy(), patch_groups(split)
    fitted = new_head(head, 0).fit(values[train], labels[train], groups[train])
    with_tumour = ~train & ((labels == 1) | split["tumour_in_ring"].to_numpy(dtype=bool))
    table, _ = group_permutation(
        lambda X: fitted.predict_proba(X)[:, 1],
        values[with_tumour],
        labels[with_tumour],
        families.group_columns(COLUMNS, "region"),
        slide_groups(split["slide"][with_tumour]),
        kind="region",
    )
    table = table.set_index("group")
    assert table.value.idxmax() == "centre", table[["value", "low", "high"]]
    assert table.low["centre"] > 0.02
    assert abs(table.value["ring"]) < 0.01


@pytest.mark.parametrize(("confound", "confounded"), [(0.0, False), (0.9, True)])
def test_stain_is_confounded_if_scanner_and_tumour_are_associated(confound, confounded):
    values, split = cohort(confound)
    groups = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"])
    assert groups.confounded is confounded, groups.words()


def test_the_stain_groups_are_the_scanners():
    values, split = cohort(0.0)
    groups = stain_groups(values, COLUMNS, split["label"].to_numpy(), split["slide"]).slides.set_index("slide").group
    domains = split.drop_duplicates("slide").set_index("slide")["domain"].loc[groups.index]
    agreement = np.mean((groups == "A") == (domains == "scanner-a"))
    assert max(agreement, 1 - agreement) >= 0.9


def changes(view):
    """Change of AUC of each model for exchanged stains and for the largest shift."""
    last = view.shifted[view.shifted.strength >= 0.2]
    return {(row.alteration, row.model): row for row in last.itertuples()}


def test_exchanged_stains_mislead_a_head_that_relies_on_the_scanner():
    change_of = changes(altered(0.9))
    colour, nuclei = change_of["restain", "logistic_colour"], change_of["restain", "logistic_nuclei"]
    assert colour.change_high < -0.1, colour
    assert colour.auc < 0.6
    assert nuclei.change > -0.1
    assert colour.change < nuclei.change - 0.3


def test_without_confounding_nuclei_are_robust_to_stain():
    change_of = changes(altered(0.0))
    for alteration in ("shift", "restain"):
        assert abs(change_of[alteration, "logistic_nuclei"].change) < 0.03
    # Large shifts hide the colour of tumour, so AUC falls, but exchanged stains do not reverse a head's ranking.
    assert change_of["shift", "logistic_colour"].change_high < 0.0
    assert change_of["restain", "logistic_colour"].auc > 0.5


@pytest.mark.parametrize(("confound", "reported"), [(0.0, False), (0.9, True)])
def test_the_section_reports_the_confounded_phantom(confound, reported):
    view = altered(confound)
    rows = [("logistic_handcrafted", "permutation", None, "colour", None, None, None, 0.1, 0.0, 0.05, 0.2)]
    section = stain_section(view, pd.DataFrame(rows, columns=IMPORTANCE_COLUMNS), "logistic_colour")
    assert view.groups.confounded is reported
    content = section.content
    assert content["families"]["words"].endswith("so this suspicion is serious.") is reported
    assert "handcrafted · logistic, −0.100" in content["families"]["words"]
    lost = "colour changes its AUC by −" in content["shifts"]["restained"]
    assert lost or not reported
    # Colours distinguish the scanners better than nuclei do.
    aucs = view.families.set_index("family").auc
    assert aucs["colour"] > 0.9
    assert aucs["nuclei"] < aucs["colour"]
