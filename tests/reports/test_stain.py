import numpy as np
import pandas as pd
import pytest

from reports.stain import FEWEST_IN_GROUP, group_scores, stain_groups

COLUMNS = [
    *(f"stain_{part}_{stain}_whole" for stain in ("haematoxylin", "eosin") for part in ("red", "green", "blue")),
    "stain_fallback_both_whole",
]


def cohort(prevalence_a, prevalence_b, *, per_slide=20, seed=0):
    """Stain values, labels and slides: two ways of staining, each slide with the given share of positives."""
    rng = np.random.default_rng(seed)
    values, labels, slides = [], [], []
    for way, shares in enumerate((prevalence_a, prevalence_b)):
        for number, share in enumerate(shares):
            vectors = np.array([0.65, 0.70, 0.29, 0.07, 0.99, 0.11]) + 0.08 * way + 0.01 * rng.normal(size=6)
            rows = vectors + 0.02 * rng.normal(size=(per_slide, 6))
            values.append(np.column_stack([rows, np.zeros(per_slide)]))
            labels += [1] * round(share * per_slide) + [0] * (per_slide - round(share * per_slide))
            slides += [f"{'ab'[way]}{number:02d}"] * per_slide
    return np.concatenate(values).astype(np.float32), np.array(labels), pd.Series(slides)


def test_ways_of_staining_that_go_with_the_label_are_called_confounded():
    values, labels, slides = cohort([0.9, 0.8, 0.7, 0.9, 0.8, 0.7], [0.2, 0.1, 0.3, 0.1, 0.2, 0.3])
    found = stain_groups(values, COLUMNS, labels, slides)
    assert found.slides.set_index("slide").group.to_dict() == {
        **{f"a{i:02d}": "A" for i in range(6)},
        **{f"b{i:02d}": "B" for i in range(6)},
    }
    assert found.difference == pytest.approx(0.6)
    # all six lie above: 2 of the 924 divisions into six and six, in either direction
    assert found.p == pytest.approx(2 / 924, abs=2e-3)
    assert found.confounded
    assert found.words().startswith("Stain and label go together. By their stain the slides fall into two groups, of 6")
    assert "80 % and 20 % positives" in found.words()


def test_the_group_with_more_positives_is_a():
    values, labels, slides = cohort([0.1, 0.2] * 3, [0.9, 0.8] * 3)
    found = stain_groups(values, COLUMNS, labels, slides)
    assert found.slides.set_index("slide").group["b00"] == "A"
    assert found.difference == pytest.approx(0.7)


def test_balanced_slides_are_not_doubted():
    shares = [0.0, 0.3, 0.5, 0.6, 0.9, 1.0]
    values, labels, slides = cohort(shares, shares)
    found = stain_groups(values, COLUMNS, labels, slides)
    assert found.difference == pytest.approx(0)
    assert found.p == 1.0
    assert not found.confounded
    assert found.words().endswith("That is no more than chance does.")


def test_labels_do_not_divide_the_slides():
    values, labels, slides = cohort([0.9, 0.1] * 3, [0.5, 0.4] * 3)
    groups = stain_groups(values, COLUMNS, labels, slides).slides.set_index("slide").group
    turned = stain_groups(values, COLUMNS, 1 - labels, slides).slides.set_index("slide").group
    assert {frozenset(groups.index[groups == name]) for name in "AB"} == {
        frozenset(turned.index[turned == name]) for name in "AB"
    }


def test_patches_without_an_estimate_or_a_slide_do_not_count():
    values, labels, slides = cohort([0.9] * 5, [0.1] * 5)
    before = stain_groups(values, COLUMNS, labels, slides)
    more = np.concatenate([values, np.full((50, 7), 0.5, np.float32), np.full((50, 7), 9.0, np.float32)])
    more[-100:-50, 6], more[-50:, 6] = 0.0, 1.0
    where = pd.concat([slides, pd.Series([None] * 50), pd.Series(["a00"] * 50)], ignore_index=True)
    after = stain_groups(more, COLUMNS, np.concatenate([labels, np.ones(50, int), np.ones(50, int)]), where)
    assert after.slides.group.tolist() == before.slides.group.tolist()


def test_it_says_nothing_where_nothing_can_be_said():
    values, labels, slides = cohort([0.9] * 3, [0.1] * 4)
    assert stain_groups(values, COLUMNS, labels, slides) is None  # seven slides
    assert stain_groups(values, ["colour_mean_red_whole"] * 7, labels, slides) is None
    values, labels, slides = cohort([0.9] * 12, [0.1] * (FEWEST_IN_GROUP - 1))
    assert stain_groups(values, COLUMNS, labels, slides) is None  # two odd slides are no way of staining


def test_scores_within_groups():
    values, labels, slides = cohort([0.5] * 4 + [1.0], [0.0] * 5)
    found = stain_groups(values, COLUMNS, labels, slides)
    predictions = pd.DataFrame({"slide": slides, "label": labels, "prob_m": np.where(slides < "b", labels, 0.5)})
    table = group_scores(found, predictions, "m").set_index("group")
    assert table.loc["A"].tolist() == [5, 100, 0.6, 1.0]
    assert table.loc["B", ["slides", "patches", "prevalence"]].tolist() == [5, 100, 0.0]
    assert np.isnan(table.auc["B"])
