import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from histoblend.models.inspection.stain import (
    FAMILY_PATCHES,
    FEWEST_IN_GROUP,
    StainGroups,
    group_scores,
    group_slides,
    group_table,
    shift_curves,
    stain_families,
    stain_groups,
)

COLUMNS = [
    *(f"stain_{part}_{stain}_whole" for stain in ("haematoxylin", "eosin") for part in ("red", "green", "blue")),
    "stain_fallback_both_whole",
]


def cohort(prevalence_a, prevalence_b, *, per_slide=20, seed=0):
    """Stain values, labels and slides: two staining protocols, each slide with the given share of positives."""
    rng = np.random.default_rng(seed)
    values, labels, slides = [], [], []
    for protocol, shares in enumerate((prevalence_a, prevalence_b)):
        for number, share in enumerate(shares):
            vectors = np.array([0.65, 0.70, 0.29, 0.07, 0.99, 0.11]) + 0.08 * protocol + 0.01 * rng.normal(size=6)
            rows = vectors + 0.02 * rng.normal(size=(per_slide, 6))
            values.append(np.column_stack([rows, np.zeros(per_slide)]))
            labels += [1] * round(share * per_slide) + [0] * (per_slide - round(share * per_slide))
            slides += [f"{'ab'[protocol]}{number:02d}"] * per_slide
    return np.concatenate(values).astype(np.float32), np.array(labels), pd.Series(slides)


def test_stain_groups_that_differ_in_label_are_confounded():
    values, labels, slides = cohort([0.9, 0.8, 0.7, 0.9, 0.8, 0.7], [0.2, 0.1, 0.3, 0.1, 0.2, 0.3])
    groups = stain_groups(values, COLUMNS, labels, slides)
    assert groups.slides.set_index("slide").group.to_dict() == {
        **{f"a{i:02d}": "A" for i in range(6)},
        **{f"b{i:02d}": "B" for i in range(6)},
    }
    assert groups.difference == pytest.approx(0.6)
    # All six are higher: 2 of the 924 divisions into six and six are as extreme, one per direction.
    assert groups.p == pytest.approx(2 / 924, abs=2e-3)
    assert groups.confounded
    assert groups.words().startswith(
        "Stain and label are confounded. Clustered by stain, the slides form two groups, of 6"
    )
    assert "80 % and 20 % positives" in groups.words()


def test_the_group_with_more_positives_is_a():
    values, labels, slides = cohort([0.1, 0.2] * 3, [0.9, 0.8] * 3)
    groups = stain_groups(values, COLUMNS, labels, slides)
    assert groups.slides.set_index("slide").group["b00"] == "A"
    assert groups.difference == pytest.approx(0.7)


def test_balanced_slides_are_not_confounded():
    shares = [0.0, 0.3, 0.5, 0.6, 0.9, 1.0]
    values, labels, slides = cohort(shares, shares)
    groups = stain_groups(values, COLUMNS, labels, slides)
    assert groups.difference == pytest.approx(0)
    assert groups.p == 1.0
    assert not groups.confounded
    assert groups.words().endswith("This difference can be due to chance.")


def test_labels_do_not_influence_the_grouping():
    values, labels, slides = cohort([0.9, 0.1] * 3, [0.5, 0.4] * 3)
    groups = stain_groups(values, COLUMNS, labels, slides).slides.set_index("slide").group
    turned = stain_groups(values, COLUMNS, 1 - labels, slides).slides.set_index("slide").group
    assert {frozenset(groups.index[groups == name]) for name in "AB"} == {
        frozenset(turned.index[turned == name]) for name in "AB"
    }


def test_patches_without_an_estimate_or_a_slide_are_ignored():
    values, labels, slides = cohort([0.9] * 5, [0.1] * 5)
    before = stain_groups(values, COLUMNS, labels, slides)
    more = np.concatenate([values, np.full((50, 7), 0.5, np.float32), np.full((50, 7), 9.0, np.float32)])
    more[-100:-50, 6], more[-50:, 6] = 0.0, 1.0
    where = pd.concat([slides, pd.Series([None] * 50), pd.Series(["a00"] * 50)], ignore_index=True)
    after = stain_groups(more, COLUMNS, np.concatenate([labels, np.ones(50, int), np.ones(50, int)]), where)
    assert after.slides.group.tolist() == before.slides.group.tolist()


def test_there_are_no_groups_with_too_few_slides_or_no_stain_columns():
    values, labels, slides = cohort([0.9] * 3, [0.1] * 4)
    assert stain_groups(values, COLUMNS, labels, slides) is None  # seven slides
    assert stain_groups(values, ["colour_mean_red_whole"] * 7, labels, slides) is None
    values, labels, slides = cohort([0.9] * 12, [0.1] * (FEWEST_IN_GROUP - 1))
    assert stain_groups(values, COLUMNS, labels, slides) is None  # two outlying slides are not a protocol


def test_scores_within_groups():
    values, labels, slides = cohort([0.5] * 4 + [1.0], [0.0] * 5)
    groups = stain_groups(values, COLUMNS, labels, slides)
    predictions = pd.DataFrame({"slide": slides, "label": labels, "prob_m": np.where(slides < "b", labels, 0.5)})
    table = group_scores(groups, predictions, "m").set_index("group")
    assert table.loc["A"].tolist() == [5, 100, 0.6, 1.0]
    assert table.loc["B", ["slides", "patches", "prevalence"]].tolist() == [5, 100, 0.0]
    assert np.isnan(table.auc["B"])


def two_groups(slides, *, each):
    """Slides alternately in groups A and B, with `each` patches per slide."""
    letters = ["A", "B"] * (len(slides) // 2)
    table = {"slide": slides, "group": letters, "prevalence": 0.5, "patches": each}
    return StainGroups(pd.DataFrame(table), 0.0, 1.0)


def test_every_model_is_evaluated_within_each_group_and_slide():
    rng = np.random.default_rng(0)
    names = np.repeat([f"s{i}" for i in range(6)], 20)
    labels = np.tile([0, 1], 60)
    group_a = np.isin(names, ["s0", "s2", "s4"])
    # m ranks group A perfectly and group B backwards; k is missing for slide s0.
    predictions = pd.DataFrame(
        {
            "slide": names,
            "label": labels,
            "prob_m": np.where(group_a, 0.2 + 0.6 * labels, 0.8 - 0.6 * labels),
            "prob_k": np.where(names == "s0", np.nan, rng.random(120)),
        }
    )
    groups = two_groups([f"s{i}" for i in range(6)], each=20)
    table = group_table(groups, predictions, ["m", "k"], draws=200).set_index(["model", "group"])
    assert table.auc["m", "A"] == table.auc_low["m", "A"] == table.auc_high["m", "A"] == 1.0
    assert table.auc["m", "B"] == table.auc_high["m", "B"] == 0.0
    assert table.loc[("k", "A"), ["slides", "patches"]].tolist() == [2, 40]
    part = predictions[~group_a]
    wins = mannwhitneyu(part.prob_k[part.label == 1], part.prob_k[part.label == 0]).statistic / 30**2
    assert table.auc["k", "B"] == pytest.approx(wins)
    assert table.auc_low["k", "B"] < wins < table.auc_high["k", "B"]
    slides = group_slides(groups, predictions, ["m", "k"])
    assert slides[slides.model == "m"].set_index("slide").auc.to_dict() == {
        f"s{i}": 1.0 - i % 2 for i in range(6)
    }  # fmt: skip
    assert "s0" not in set(slides[slides.model == "k"].slide)


def test_a_group_of_one_class_has_no_interval():
    names = np.repeat([f"s{i}" for i in range(6)], 10)
    labels = np.where(np.isin(names, ["s0", "s2", "s4"]), 1, np.tile([0, 1], 30))
    predictions = pd.DataFrame({"slide": names, "label": labels, "prob_m": np.random.default_rng(0).random(60)})
    table = group_table(two_groups([f"s{i}" for i in range(6)], each=10), predictions, ["m"], draws=100)
    assert table.set_index("group").loc["A", ["auc", "auc_low", "auc_high"]].isna().all()


def test_families_predict_the_group_of_unseen_slides():
    rng = np.random.default_rng(1)
    names = np.repeat([f"s{i:02d}" for i in range(20)], 40)
    group = np.repeat(np.arange(20) % 2, 40)
    number = np.repeat(np.arange(20), 40)
    values = np.column_stack(
        [
            group + 0.1 * rng.normal(size=800),  # informative
            rng.normal(size=800),  # uninformative
            # Identifies the slide, so it predicts the group of training slides only.
            (number[:, None] == np.arange(20)) + 0.01 * rng.normal(size=(800, 20)),
        ]
    ).astype(np.float32)
    columns = ["colour_mean_red_whole", "nuclei_mean_area_whole", *(f"lbp_bin-{i}_grey_whole" for i in range(20))]
    groups = two_groups([f"s{i:02d}" for i in range(20)], each=40)
    table = stain_families(values, columns, groups, pd.Series(names), draws=200).set_index("family")
    assert table.index[0] == "colour"
    assert table.auc["colour"] > 0.99
    assert table.auc["nuclei"] < 0.65
    assert table.auc["lbp"] < 0.65
    assert table.low["nuclei"] < 0.5 < table.high["nuclei"]
    assert table["columns"].to_dict() == {"colour": 1, "nuclei": 1, "lbp": 20}
    assert set(table.patches) == {20 * FAMILY_PATCHES}


def test_patches_of_slides_in_no_group_are_ignored():
    rng = np.random.default_rng(0)
    names = pd.Series(np.repeat([f"s{i}" for i in range(8)], 10)).where(np.arange(80) >= 10)
    groups = two_groups([f"s{i}" for i in range(2, 8)], each=10)
    values = rng.normal(size=(80, 2)).astype(np.float32)
    table = stain_families(values, ["colour_a_b_whole", "lbp_a_b_whole"], groups, names, draws=100)
    assert set(table.slides) == {6}
    assert set(table.patches) == {60}


def test_a_group_of_one_slide_is_not_predicted():
    names = pd.Series(np.repeat(["s0", "s1", "s2", "s3"], 10))
    groups = two_groups(["s0", "s1", "s2", "s3"], each=10)
    groups.slides["group"] = ["A", "B", "B", "B"]
    values = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    assert stain_families(values, ["colour_a_b_whole"], groups, names, draws=100) is None


def shifted(move, *, slides=6, each=20, seed=0):
    """Predictions of one model at strengths 0 and 0.1 (two draws), the latter changed by ``move(draw, slide)``."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(slides), each)
    labels = np.tile([0, 1], slides * each // 2)
    base = 0.3 + 0.4 * labels + 0.02 * rng.random(len(labels))
    parts = []
    for strength, draw in [(0.0, 0), (0.1, 0), (0.1, 1)]:
        added = np.array([move(draw, i) for i in number]) if strength else 0.0
        parts.append(
            pd.DataFrame(
                {
                    "patch_id": [f"p{i:03d}" for i in range(len(labels))],
                    "slide": [f"s{i}" for i in number],
                    "label": labels,
                    "alteration": "shift",
                    "strength": strength,
                    "draw": draw,
                    "prob_m": base + added,
                }
            )
        )
    # Shuffled, because rows are matched by their ids.
    return pd.concat(parts).sample(frac=1, random_state=seed)


def test_a_model_with_unchanged_predictions_keeps_its_auc():
    curves = shift_curves(shifted(lambda draw, slide: 0.0), ["m"], {"m": 0.5}, draws=200)
    assert curves.strength.tolist() == [0.0, 0.1]
    assert (curves[["auc", "auc_low", "auc_high"]] == 1.0).all(axis=None)
    assert (curves[["change", "change_low", "change_high", "moved", "turned"]] == 0.0).all(axis=None)
    assert set(curves.patches) == {120}
    assert set(curves.slides) == {6}


def test_the_loss_follows_from_the_shifted_slides():
    # Half of the slides move up by 0.45, above the others' positives. One of the four kinds of pairs (slide of the
    # negative, slide of the positive) is then reversed, which loses a quarter of the pairs. The second draw moves none.
    curves = shift_curves(shifted(lambda draw, slide: 0.45 * (slide % 2) * (1 - draw)), ["m"], {"m": 0.5}, draws=500)
    row = curves[curves.strength == 0.1].iloc[0]
    assert row.auc == pytest.approx((0.75 + 1.0) / 2)
    assert row.change == pytest.approx(-0.125)
    # A share p of moved slides reverses p (1 − p) of the pairs, which is largest for p = 1/2.
    assert row.change_low == pytest.approx(-0.125)
    assert row.change_low < row.change_high <= 0.0
    # A quarter of all patches and draws moves by 0.45, and the negatives among them cross one half.
    assert row.moved == pytest.approx(0.45 / 4)
    assert row.turned == pytest.approx(1 / 8)


def test_an_interval_is_missing_if_most_draws_lack_a_class():
    table = shifted(lambda draw, slide: 0.0, slides=2)
    table["label"] = (table.slide == "s0").astype(int)  # half of the draws contain one slide twice
    rows = shift_curves(table.assign(prob_m=table.label), ["m"], {"m": 0.5}, draws=2000, seed=1)
    assert rows.auc.tolist() == [1.0, 1.0]
    four_slides = shifted(lambda draw, slide: 0.0, slides=4)
    four_slides["label"] = (four_slides.slide == "s0").astype(int)
    assert shift_curves(four_slides, ["m"], {"m": 0.5}, draws=500).auc_low.notna().all()
