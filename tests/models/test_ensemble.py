"""The ensemble: combiners against independent fits, the choice, no leak through nesting, and the round trip to JSON."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from histoblend.data.errors import InputError
from histoblend.models import combiners
from histoblend.models.calibration import (
    POINTS,
    Calibrator,
    CalibratorChoice,
    choose_calibrator,
    log_losses,
    operating_points,
)
from histoblend.models.combiners import COMBINERS, INNER_FOLDS, PENALTIES, STRENGTHS, Combiner, _weights, fit_combiner
from histoblend.models.ensemble import Ensemble, _behind, _compare, fit_ensemble, usable_parts
from histoblend.models.ensemble_evaluation import error_correlations, nest, without_each
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.resampling import auc_draws, percentile_interval
from tests.oracles.metrics import resampled_slides

NAMES = ("a", "b", "c")
FOLDS = 3


def cohort(seed=0, slides=20, each=30, skill=(1.5, 1.5, 0.3), shared=0.3, folds=FOLDS):
    """Members of given skill on slides that differ in prevalence, with labels, slides and folds of slides."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), each)
    labels = (rng.random(len(slide)) < rng.beta(1.5, 1.5, slides)[slide]).astype(int)
    common = rng.normal(0, shared, len(slide))
    odds = [gain * (labels - 0.5) + common + rng.normal(0, 1, len(slide)) for gain in skill]
    return expit(np.stack(odds, axis=1)), labels, slide, slide % folds


def test_mean_and_rank_by_hand():
    table = np.array([[0.1, 0.5], [0.3, 0.5], [0.9, 0.6], [0.95, 0.7]])
    labels, slides = np.array([0, 0, 1, 1]), np.arange(4)
    mean = fit_combiner("mean", table, labels, slides, 0)
    np.testing.assert_allclose(mean.predict(table), expit(logit(table).mean(axis=1)))
    ranks = (np.stack([rankdata(column) for column in table.T], axis=1) - 0.5) / 4
    combiner = fit_combiner("rank", table, labels, slides, 0)
    np.testing.assert_allclose(combiner.predict(table), ranks.mean(axis=1))
    # A new patch is ranked among the reference patches, so its score does not depend on other new patches.
    assert combiner.predict(np.array([[0.2, 0.99]])) == pytest.approx([(0.25 + 0.875) / 2])


def test_ranks_of_many_patches_keep_their_order():
    column = np.random.default_rng(0).random((5000, 1))
    labels = (column[:, 0] > 0.5).astype(int)
    combiner = fit_combiner("rank", column, labels, np.arange(5000) % 9, 0)
    assert len(combiner.knots[0]) <= 257
    assert np.abs(combiner.predict(column) - (rankdata(column) - 0.5) / 5000).max() < 0.005


@pytest.mark.parametrize("penalty", [0.001, 0.1])
def test_another_optimiser_finds_the_same_weights(penalty):
    table, labels, *_ = cohort(slides=8, each=20, skill=(1.5, 1.0, -0.8))
    odds = logit(table)
    positive = labels.sum()
    targets = np.where(labels == 1, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2))

    def loss(w):
        p = expit(odds @ w[:3] + w[3])
        spread = sum((w[i] - w[:3].mean()) ** 2 for i in range(3))
        return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p)) + penalty / 2 * spread

    expected = minimize(loss, np.full(4, 0.2), bounds=[(0, None)] * 3 + [(None, None)], method="SLSQP", tol=1e-12)
    weights = _weights(odds, labels, penalty, None)
    assert weights == pytest.approx(expected.x, abs=1e-3)
    if penalty < 0.01:
        assert weights[2] == 0  # negative without the bound


def test_the_strongest_penalty_gives_equal_weights():
    table, labels, *_ = cohort()
    weights = _weights(logit(table), labels, 1e6, None)[:3]
    assert np.ptp(weights) < 1e-4
    assert weights[0] > 0


def test_the_penalty_has_the_smallest_loss_over_all_rows_of_the_inner_folds():
    """A large fold counts more than a small one; the mean of the folds' losses would choose another penalty."""
    table, labels, slides, _ = cohort(16, slides=7, each=40, skill=(1.5, 1.0, 0.3))
    kept = (slides < 2) | (np.random.default_rng(16).random(len(slides)) < 0.2)
    odds, labels, slides = logit(table[kept]), labels[kept], slides[kept]
    pooled, averaged = {}, {}
    for penalty in PENALTIES:
        losses = []
        for train, part in inner_folds(labels, slides, INNER_FOLDS, 0):
            weights = _weights(odds[train], labels[train], penalty, None)
            probability = expit(odds[part] @ weights[:3] + weights[3])
            losses.append(-np.log(np.where(labels[part] == 1, probability, 1 - probability)))
        pooled[penalty], averaged[penalty] = np.concatenate(losses).mean(), np.mean([loss.mean() for loss in losses])
    best = min(pooled, key=pooled.get)
    assert best != min(averaged, key=averaged.get)
    combiner = fit_combiner("weights", table[kept], labels, slides, 0)
    assert combiner.strength == best
    np.testing.assert_allclose([*combiner.weights, combiner.intercept], _weights(odds, labels, best, None))


def test_penalties_are_evenly_spaced_on_a_log_scale_strongest_first():
    assert np.divide(PENALTIES[:-1], PENALTIES[1:]) == pytest.approx([10] * 3)
    assert np.divide(STRENGTHS[1:], STRENGTHS[:-1]) == pytest.approx([10] * 3)


def test_the_penalty_of_many_rows_is_chosen_on_a_sample(monkeypatch):
    table, labels, slides, _ = cohort(slides=8, each=20)
    seen = []
    monkeypatch.setattr(combiners, "CHOOSE_ON", 90)
    monkeypatch.setattr(combiners, "inner_folds", lambda *args: seen.append(args[1]) or inner_folds(*args))
    combiner = fit_combiner("weights", table, labels, slides, 0)
    np.testing.assert_array_equal(seen[0], slides[np.sort(np.random.default_rng(0).choice(160, 90, replace=False))])
    np.testing.assert_allclose(combiner.weights, _weights(logit(table), labels, combiner.strength, None)[:3])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "rank", "weights": (0.5, 0.5), "knots": ((0.1,),), "ranks": ((0.2,),)}, "must have 2 lists of knots"),
        ({"kind": "rank", "weights": (1.0,), "knots": ((0.1, 0.2),), "ranks": ((0.2,),)}, "must have 1 lists of knots"),
        ({"kind": "rank", "weights": (1.0,), "knots": ((),), "ranks": ((),)}, "must have 1 lists of knots"),
        ({"kind": "mean", "weights": (1.0,), "knots": ((0.1,),), "ranks": ((0.2,),)}, "must have 0 lists of knots"),
        ({"kind": "rank", "weights": (1.0,), "knots": ((0.1, 0.1),), "ranks": ((0.1, 0.2),)}, "must increase"),
    ],
    ids=["one list for two members", "fewer ranks", "empty", "knots of a mean", "equal knots"],
)
def test_a_combiner_without_a_rank_for_each_knot_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        Combiner(**content)


def test_stack_is_logistic_regression_on_log_odds():
    table, labels, slides, _ = cohort()
    combiner = fit_combiner("stack", table, labels, slides, 0)
    odds = logit(table)
    standard = (odds - odds.mean(axis=0)) / odds.std(axis=0)
    model = LogisticRegression(C=combiner.strength, max_iter=2000, tol=1e-8).fit(standard, labels)
    np.testing.assert_allclose(combiner.predict(table), model.predict_proba(standard)[:, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("seed", "skill", "kinds"),
    [(3, (1.5, 1.5, 1.5), ("mean", "rank")), (3, (2.5, 0.0, -1.5), ("weights", "stack"))],
    ids=["similar members", "different members"],
)
def test_the_simplest_combiner_within_a_standard_error_of_the_best_is_chosen(seed, skill, kinds):
    """All numbers of the comparison are worked out again by repeating the rows of the drawn slides."""
    table, labels, slides, folds = cohort(seed, slides=15, each=20, skill=skill)
    fitted = fit_ensemble(NAMES, table, labels, slides, folds, draws=40, seed=5)
    parts = [np.flatnonzero(folds == fold) for fold in range(FOLDS)]
    drawn = [
        np.concatenate([np.flatnonzero(slides == slide) for slide in draw]) for draw in resampled_slides(slides, 40, 5)
    ]
    auc, loss, calibrated = {}, {}, {}
    for kind, score in fitted.scores.items():
        for part in parts:
            rest = np.setdiff1d(np.arange(len(labels)), part)
            expected = fit_combiner(kind, table[rest], labels[rest], slides[rest], 5).predict(table[part])
            np.testing.assert_allclose(score[part], expected)
        calibrated[kind] = choose_calibrator(score, labels, slides, parts, draws=40, seed=5)
        losses = log_losses(labels, calibrated[kind].probability)
        auc[kind] = np.array([roc_auc_score(labels[rows], score[rows]) for rows in (slice(None), *drawn)])
        loss[kind] = np.array([losses[rows].mean() for rows in (slice(None), *drawn)])
    best = max(auc, key=lambda kind: auc[kind][0]), min(loss, key=lambda kind: loss[kind][0])
    near = {}
    for row in fitted.compared:
        kind = row["combiner"]
        behind = {"auc": auc[best[0]] - auc[kind], "log_loss": loss[kind] - loss[best[1]]}
        near[kind] = True
        for name, values in behind.items():
            assert row[name] == pytest.approx({"auc": auc, "log_loss": loss}[name][kind][0])
            assert row[f"{name}_behind"] == pytest.approx(values[0])
            assert row[f"{name}_spread"] == pytest.approx(values[1:].std(ddof=1))
            near[kind] &= values[0] <= values[1:].std(ddof=1)
    assert tuple(near) == COMBINERS
    chosen = next(kind for kind in COMBINERS if near[kind])
    assert chosen in kinds
    assert [row["combiner"] for row in fitted.compared if row["chosen"]] == [chosen]
    assert fitted.ensemble.combiner == fit_combiner(chosen, table, labels, slides, 5)
    assert fitted.ensemble.calibrator == calibrated[chosen].calibrator
    assert fitted.ensemble.thresholds == operating_points(labels, calibrated[chosen].probability)


@pytest.mark.parametrize(
    ("ranking", "calibrated", "chosen"),
    [
        ({"mean": "good", "weights": "good"}, {"weights"}, "weights"),
        ({"mean": "bad", "weights": "good"}, {"mean"}, "weights"),
        ({"mean": "nearly", "weights": "good", "stack": "bad"}, {"stack"}, "mean"),
    ],
    ids=["both criteria", "only AUC", "the simplest near the best AUC"],
)
def test_a_combiner_must_be_near_the_best_in_both_auc_and_log_loss(ranking, calibrated, chosen):
    """If none is, AUC decides."""
    table, labels, slides, _ = cohort(slides=12, each=20)
    good = table[:, 0]
    scores = {"good": good, "nearly": expit(logit(good) + np.random.default_rng(2).normal(0, 0.1, 240)), "bad": -good}
    scores = {kind: scores[rank] for kind, rank in ranking.items()}
    calibrations = {
        kind: CalibratorChoice(Calibrator(), good if kind in calibrated else 0.5 + 0.1 * (good - 0.5), [])
        for kind in scores
    }
    compared = _compare(scores, calibrations, labels, slides, 50, 0)
    assert [row["combiner"] for row in compared if row["chosen"]] == [chosen]
    assert compared[0]["auc_behind"] > 0 or ranking["mean"] == "good"


def test_combiners_are_not_distinguished_if_most_draws_have_one_class():
    drawn = np.array([[0.7, 0.9], [0.8, 0.9], [0.75, 0.8]])
    behind, spread = _behind(np.array([0.8, 0.9]), drawn, 6)
    assert behind == pytest.approx([0.1, 0])
    assert spread == pytest.approx([np.std([0.2, 0.1, 0.05], ddof=1), 0])
    assert _behind(np.array([0.8, 0.9]), drawn, 7)[1].tolist() == [np.inf, np.inf]


def test_held_out_labels_change_nothing():
    """Predictions and thresholds of a fold do not depend on its labels."""
    table, labels, slides, folds = cohort(1, slides=10, each=12)
    first = nest(NAMES, table, labels, slides, folds, combiners=("mean", "weights"), draws=50)
    for fold in (0, 2):
        inside = folds == fold
        flipped = np.where(inside, 1 - labels, labels)
        second = nest(NAMES, table, flipped, slides, folds, combiners=("mean", "weights"), draws=50)
        np.testing.assert_array_equal(first.probability[inside], second.probability[inside])
        np.testing.assert_array_equal(first.single[inside], second.single[inside])
        for name in POINTS:
            np.testing.assert_array_equal(first.thresholds[name][inside], second.thresholds[name][inside])
        assert (first.probability[~inside] != second.probability[~inside]).any()


def test_one_fold_is_divided_by_slide():
    """If members predicted a single fold, new folds by slide still give nested scores with a choice."""
    table, labels, slides, _ = cohort(1, slides=12, each=20)
    nested = nest(NAMES, table, labels, slides, np.full(len(labels), 2), combiners=("weights",), draws=50)
    assert [row["combiner"] for row in nested.choices] == ["weights"] * 3
    assert not np.allclose(nested.probability, table.mean(axis=1))


@pytest.mark.parametrize("kind", COMBINERS)
def test_random_labels_score_one_half(kind):
    table, _, slides, folds = cohort(2, slides=25, each=24, folds=5)
    labels = np.random.default_rng(5).permutation(np.repeat([0, 1], len(slides) // 2))
    probability = nest(NAMES, table, labels, slides, folds, combiners=(kind,), draws=100).probability
    drawn = auc_draws(labels, probability[:, None], slides.astype(np.int32), draws=500, seed=0)
    low, high = percentile_interval(drawn[:, 0])
    assert low <= 0.5 <= high


def test_a_member_that_only_identifies_slides_gains_nothing():
    """Out-of-fold, it has no information on held-out slides; with leaked labels it would gain a lot."""
    table, labels, slides, folds = cohort(4, slides=20, each=20)
    share = np.bincount(slides, labels) / 20
    out_of_fold = np.empty(len(labels))
    for fold in range(FOLDS):
        # Out-of-fold: an unseen slide gets the share of the nearest slide in the other folds.
        known = np.flatnonzero(np.arange(20) % FOLDS != fold)
        for slide in np.flatnonzero(np.arange(20) % FOLDS == fold):
            out_of_fold[slides == slide] = share[known[np.argmin(np.abs(known - slide))]]
    planted = np.column_stack([table, out_of_fold.clip(0.02, 0.98)])
    leaky = np.column_stack([table, share[slides].clip(0.02, 0.98)])
    plain, with_member, leaked = (
        roc_auc_score(labels, nest(names, members, labels, slides, folds, combiners=("stack",), draws=50).probability)
        for names, members in ((NAMES, table), ((*NAMES, "slide"), planted), ((*NAMES, "slide"), leaky))
    )
    assert with_member < plain + 0.01
    assert leaked > plain + 0.02


def test_the_same_seed_gives_the_same_bits():
    content = [fit_ensemble(NAMES, *cohort(slides=6, each=15), draws=50, seed=3).ensemble.to_dict() for _ in range(2)]
    assert json.dumps(content[0]) == json.dumps(content[1])


@pytest.mark.parametrize("kind", COMBINERS)
def test_an_ensemble_survives_json_and_a_row_does_not_depend_on_others(kind):
    table, labels, slides, folds = cohort()
    ensemble = fit_ensemble(NAMES, table, labels, slides, folds, combiners=(kind,), draws=100).ensemble
    loaded = Ensemble.from_dict(json.loads(json.dumps(ensemble.to_dict())))
    whole = ensemble.predict(table)
    np.testing.assert_array_equal(loaded.predict(table), whole)
    np.testing.assert_array_equal([ensemble.predict(table[row : row + 1])[0] for row in range(40)], whole[:40])
    assert loaded.prevalence == labels.mean()
    assert set(loaded.thresholds) == set(POINTS)


def change(path, value):
    """A stored ensemble with one value replaced."""
    content = fit_ensemble(NAMES, *cohort(), combiners=("rank",), draws=100).ensemble.to_dict()
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["combiner", "kind"], "vote", "combiner must be one of mean, rank, weights, stack; got 'vote'"),
        (["combiner", "weights"], [0.5, 0.5], "must have 2 lists of knots"),
        (["combiner", "weights"], ["x"], r"combiner.weights.0: .*number"),
        (["combiner", "knots"], [[0.1], [0.2]], "lists of knots"),
        (["calibrator", "kind"], "spline", "calibrator must be one of"),
        (["thresholds"], {"youden": 0.5}, "thresholds must be sensitivity-0.95"),
        (["prevalence"], 1.0, "prevalence must be above 0 and below 1"),
        (["prevalence"], 0.0, "prevalence must be above 0 and below 1"),
        (["prevalence"], -0.1, "prevalence must be above 0 and below 1"),
        (["thresholds"], 5, "thresholds: .*got '5'"),
        (["combiner", "knots"], 5, "combiner.knots: .*got '5'"),
        (["members"], 5, "members: .*got '5'"),
        (["members"], [], "combiner must have 0 weights"),
        (["members"], ["a", "b"], "combiner must have 2 weights; got 3"),
        (["extra"], 1, "extra: "),
    ],
)
def test_a_broken_file_is_refused(path, value, message):
    with pytest.raises(InputError, match=message):
        Ensemble.from_dict(change(path, value))


def test_invalid_probabilities_are_refused():
    ensemble = fit_ensemble(NAMES, *cohort(), combiners=("mean",), draws=100).ensemble
    with pytest.raises(InputError, match=r"one column for each of a, b, c; got shape \(4, 2\)"):
        ensemble.predict(np.full((4, 2), 0.5))
    with pytest.raises(InputError, match=r"got shape \(3,\)"):
        ensemble.predict(np.full(3, 0.5))
    for value in (np.nan, 1.5, -0.5):
        with pytest.raises(InputError, match=rf"got {value} from b in row 1"):
            ensemble.predict(np.array([[0.5, 0.0, 1.0], [0.5, value, 0.5], [0.5, 0.5, -1.0]]))


def test_too_few_folds_give_the_mean():
    table, labels, _, _ = cohort(slides=2, each=20)
    fitted = fit_ensemble(NAMES, table, labels, np.zeros(40), np.zeros(40))
    assert (fitted.ensemble.combiner.kind, fitted.ensemble.calibrator.kind) == ("mean", "none")


def test_leaving_a_member_out_and_correlated_errors():
    table, labels, slides, folds = cohort(6, skill=(2.0, 0.1, 0.1))
    columns = without_each("weights", NAMES, table, labels, slides, folds)
    aucs = [roc_auc_score(labels, column) for column in columns.T]
    assert aucs[1] < aucs[0] - 0.1
    assert abs(aucs[2] - aucs[0]) < 0.02
    expected = np.corrcoef((labels[:, None] - table).T)
    np.testing.assert_allclose(error_correlations(table, labels), expected, atol=1e-12)


@pytest.mark.parametrize("folds", [2, 3])
def test_a_combiner_is_chosen_if_one_fold_has_all_patches_of_a_class(folds):
    # Each slide has one class. The given folds put one class into a single fold; other folds by slide need not.
    probabilities, _, slides, _ = cohort(slides=9, each=10)
    labels = (slides < 3).astype(int)
    given = np.where(slides < 3, 0, slides % folds)
    parts = usable_parts(labels, slides, given, 0)
    assert len(parts) == 3
    assert all(set(labels[part]) == {0, 1} for part in parts)
    assert len(fit_ensemble(NAMES, probabilities, labels, slides, given, draws=50).compared) == len(COMBINERS)
