"""Leave one centre out: nothing is learned from the left-out centre, and planted differences between centres show."""

import numpy as np
import pandas as pd
import pytest

from histoblend.pipelines.config import Config
from histoblend.pipelines.engine.kept_fits import FitCache
from histoblend.pipelines.printed_tables import show_ladder
from histoblend.pipelines.run_files import CENTRES, PREDICTIONS
from histoblend.pipelines.steps.centres import affordable_heads, build, centre_parts, is_needed, predict_centres
from histoblend.pipelines.steps.heads import out_of_fold
from histoblend.reports.evaluation.centres import MEAN, score_centres
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.sections.centres import centre_rows, centre_words
from tests.pipelines.fits import local, stored_sets
from tests.pipelines.stub_run import StubRun


def cohort(slides=24, each=30, seed=0, shortcut=0.0):
    """Patches of two centres. Column 0 shows tumour weakly, column 1 with another sign in each, column 2 the centre.

    With ``shortcut``, tumour is that much more frequent in centre b.
    """
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), each)
    second = slide % 2 == 1
    label = (rng.random(len(slide)) < np.where(second, 0.5 + shortcut, 0.5 - shortcut)).astype(np.int8)
    values = rng.normal(size=(len(slide), 6)).astype(np.float32)
    values[:, 0] += 0.8 * label
    values[:, 1] += np.where(second, -1, 2.5) * label
    values[:, 2] += 8 * second
    table = pd.DataFrame({"patch_id": [f"p{row}" for row in range(len(slide))], "label": label})
    names = [f"s{number:02d}" for number in slide]
    table["slide"] = table["group"] = pd.array(names, "string")
    table["centre"] = pd.array(np.where(second, "b", "a"), "string")
    table["split"] = np.where(slide < slides - 4, "train", "test")
    table["fold"] = np.where(slide < slides - 4, slide // 2 % 3, -1)
    return table, values


def scores_of(table, values, folder):
    parts = centre_parts(table)
    fitter = local(values)
    left_out = predict_centres("logistic", fitter, table, parts, 0, FitCache(folder), "m")
    mixed, _ = out_of_fold("logistic", fitter, table, seed=0)
    rows = np.flatnonzero(~np.isnan(left_out))
    names = {"logistic_colour": left_out[rows]}, {"logistic_colour": mixed[rows]}
    parts_of = [pd.DataFrame(columns, index=rows) for columns in names]
    return score_centres(table.loc[rows], *parts_of, draws=200, seed=0)


def test_nothing_is_learned_from_the_left_out_centre(tmp_path):
    table, values = cohort()
    # A slide of centre a shares a duplicate with one of b, so it is in a group of both.
    table.loc[table["slide"].isin(["s00", "s01"]), "group"] = "s00"
    parts = centre_parts(table)
    rows, out = parts["b"]
    assert set(table["centre"][out]) == {"b"}
    assert set(table["centre"][rows]) == {"a"}
    assert "s00" not in set(table["group"][rows])
    assert (table["split"].iloc[np.concatenate([rows, out])] == "train").all()
    before = predict_centres("logistic", local(values), table, parts, 0, FitCache(tmp_path / "first"), "m")
    # Every label of b is changed, and every value but those of the patches compared; so are the test slides.
    compared = out[::2]
    other = np.setdiff1d(np.arange(len(table)), np.concatenate([rows, compared]))
    changed, ruined = table.copy(), values.copy()
    changed.loc[np.union1d(other, out), "label"] = 1 - table["label"]
    ruined[other] = 1e3
    after = predict_centres("logistic", local(ruined), changed, centre_parts(changed), 0, FitCache(tmp_path / "b"), "m")
    np.testing.assert_array_equal(after[compared], before[compared])
    assert not np.isnan(before[table["split"] == "train"]).any()
    assert np.isnan(before[table["split"] == "test"]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_differences_between_centres_are_found(tmp_path, seed):
    table, values = cohort(seed=seed)
    scores = scores_of(table, values, tmp_path / "effect").set_index("centre")
    # What shows tumour in one centre misleads a model that has seen only the other.
    assert (scores.loc[["a", "b", MEAN], "change_high"] < 0).all()
    assert scores.loc[MEAN, "auc"] == pytest.approx(scores.loc[["a", "b"], "auc"].mean())
    assert scores.loc[MEAN, "change_low"] <= scores.loc[MEAN, "change"] <= scores.loc[MEAN, "change_high"]
    # Without it, a new centre is as easy as new slides of known centres.
    values[:, 1] = 0
    alike = scores_of(table, values, tmp_path / "alike").set_index("centre").loc[MEAN]
    assert abs(alike["change"]) < 0.03
    # Tumour that is linked with the centre raises the usual AUC only: within a centre the link says nothing.
    linked, values[:, 0] = cohort(seed=seed, shortcut=0.4)[0], 0
    values[:, 0] = 0.8 * linked["label"] + np.random.default_rng(seed).normal(size=len(linked))
    mean = scores_of(linked, values, tmp_path / "link").set_index("centre").loc[MEAN]
    assert mean["pooled"] > 0.85
    assert mean["auc"] < 0.78


def test_centres_that_cannot_be_left_out_or_scored_are_named():
    table, values = cohort()
    assert centre_parts(table.drop(columns="centre")) == {}
    assert centre_parts(table.assign(centre=table["centre"].where(table["split"] == "test"))) == {}
    one_label = table.assign(label=(table["centre"] == "b").astype(int))
    assert centre_parts(one_label) == {}
    scores = pd.DataFrame({"logistic_colour": values[:, 0]}).rank(pct=True)
    part = score_centres(
        table.assign(label=table["label"].where(table["centre"] == "a", 1)), scores, scores, draws=50, seed=0
    )
    assert part.set_index("centre")["auc"].isna().tolist() == [False, True, False]
    assert "over 1 centres" in centre_words(part)
    assert centre_words(part).endswith("Centres with one label, which have no AUC: b.")
    none = score_centres(one_label, scores, scores, draws=50, seed=0)
    assert "No left-out centre has patches of both labels" in centre_words(none)
    few = score_centres(table[table["slide"].isin(["s00", "s01", "s02"])], scores, scores, draws=50, seed=0)
    assert few["auc_low"].isna().all()
    assert centre_words(None) == ""
    assert centre_rows(None) == []


@pytest.mark.parametrize(
    ("features", "slides", "needed"),
    [
        (["families"], "known", False),
        (["families", "in-slide"], "known", True),
        (["families", "in-slide"], "unknown", False),
        (["families", "embeddings"], "unknown", True),
    ],
)
def test_single_families_alone_are_not_fitted_without_a_centre(features, slides, needed):
    class Patches:
        table = cohort()[0]

    if slides == "unknown":
        Patches.table["slide"] = pd.NA
    settings = {"heads": {"features": features}, "features": {"families": ["nuclei"]}}
    assert is_needed(StubRun(Config.model_validate(settings), {}, patches=Patches)) is needed


def test_centres_are_left_out_although_a_group_of_unknown_slides_spans_them():
    table, _ = cohort()
    train = (table["split"] == "train").to_numpy()
    for name in ("(unmapped)", "(inferred 01)"):
        parts = centre_parts(table.assign(slide=name, group=name))
        for centre in "ab":
            rows, out = parts[centre]
            assert set(table["centre"][out]) == {centre}
            assert set(rows) == set(np.flatnonzero(train)) - set(out)
    # A known slide that is in this group shares a duplicate with a patch of it, maybe one of the left-out centre.
    linked = table.assign(slide=table["slide"].where(table["slide"] == "s00", "(unmapped)"), group="(unmapped)")
    assert "s00" not in set(linked["slide"].iloc[centre_parts(linked)["b"][0]])


def test_trees_are_fitted_unless_there_are_many_patches():
    assert affordable_heads(("logistic", "xgboost"), 20_000) == ["logistic", "xgboost"]
    assert affordable_heads(("logistic", "xgboost"), 20_001) == ["logistic"]
    assert affordable_heads(("xgboost",), 20_001) == ["xgboost"]


def test_the_step_writes_scores_that_the_terminal_shows(tmp_path, monkeypatch, capsys):
    table, values = cohort()
    config = Config.model_validate(
        {"heads": {"features": ["colour", "embeddings"], "heads": ["logistic"]}, "report": {"draws": 100}}
    )
    names = [f"colour_mean_c{number}_whole" for number in range(6)]
    sets = stored_sets(
        tmp_path, config, table["slide"], features=(values, names), embeddings=(values[:, :3], names[:3])
    )
    mixed = table[["patch_id", "slide", "split", "fold", "label"]].copy()
    for name in sets:
        mixed[f"prob_logistic_{name}"] = out_of_fold("logistic", local(sets[name][0]), table, seed=0)[0]
    for name in ("prepare", "heads", "centres"):
        (tmp_path / name).mkdir()
    mixed.to_parquet(tmp_path / "heads" / PREDICTIONS)

    class Patches:
        pass

    patches = Patches()
    patches.table = table
    opened = {"patches": patches, "feature sets": sets}
    run = StubRun(config, {name: tmp_path / name for name in ("prepare", "heads", "centres")}, **opened)
    run.cluster, run.workers = None, 1
    assert is_needed(run)
    assert build(run, tmp_path / "centres").rows == (table["split"] == "train").sum()
    written = pd.read_csv(tmp_path / "centres" / CENTRES)
    assert set(written["model"]) == {"logistic_colour", "logistic_embeddings"}
    steps = ladder(mixed, ["logistic_colour"], draws=50)
    monkeypatch.setattr("histoblend.pipelines.printed_tables.read_ladder", lambda run: steps)
    show_ladder(run)
    said = " ".join(capsys.readouterr().out.split())
    assert "one centre left out" in said
    assert "worst centre: a, AUC" in said
    assert [row["centre"] for row in centre_rows(written)[:2]] == [MEAN, "a"]
