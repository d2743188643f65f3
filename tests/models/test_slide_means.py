"""Means over slides: by hand, and as inputs of an ensemble, which help only if slides are informative."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from histoblend.features.handcrafted.slide_context import trust
from histoblend.models.ensemble import fit_ensemble
from histoblend.models.ensemble_evaluation import nest, without_each
from histoblend.models.slide_means import slide_means

NAMES = ("a", "b")


def cohort(seed, share, *, slides=18, each=24):
    """Two members on slides whose share of positives is drawn by ``share``, with labels, slides and folds of slides."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), each)
    labels = (rng.random(len(slide)) < share(rng, slides)[slide]).astype(int)
    odds = [1.2 * (labels - 0.5) + rng.normal(0, 1, len(slide)) for _ in NAMES]
    return expit(np.stack(odds, axis=1)), labels, slide.astype(object), slide % 3


def test_means_by_hand():
    odds = np.concatenate([np.arange(20.0) / 10, [1.0, 3.0], np.arange(10.0), [5.0]])[:, None]
    slides = np.array(["full"] * 20 + ["few"] * 2 + ["some"] * 10 + [None], dtype=object)
    means = logit(slide_means(expit(odds), slides))[:, 0]
    np.testing.assert_allclose(means[:20], 0.95, atol=1e-9)  # enough patches: the mean of 0, 0.1 … 1.9
    np.testing.assert_allclose(means[20:22], [1.0, 3.0], atol=1e-9)  # too few patches: their own log-odds
    assert trust(10) == 0.5
    np.testing.assert_allclose(means[22:32], 0.5 * 4.5 + 0.5 * np.arange(10.0), atol=1e-9)
    assert means[32] == pytest.approx(5.0)


def test_bits_do_not_depend_on_other_slides_or_their_order():
    table = np.random.default_rng(0).random((90, 2))
    slides = np.repeat(np.array(["x", "y", "z"], dtype=object), 30)
    whole = slide_means(table, slides)
    np.testing.assert_array_equal(slide_means(table[30:60], slides[30:60]), whole[30:60])
    backwards = np.argsort(slides, kind="stable")[::-1].reshape(3, 30)[:, ::-1].ravel()
    np.testing.assert_array_equal(slide_means(table[backwards], slides[backwards]), whole[backwards])


def test_means_help_if_slides_differ_in_their_share_of_tumour():
    table, labels, slides, folds = cohort(1, lambda rng, n: rng.permutation(np.linspace(0.05, 0.95, n)))
    options = {"combiners": ("stack",), "draws": 50}
    plain = nest(NAMES, table, labels, slides, folds, **options).probability
    with_means = nest(NAMES, table, labels, slides, folds, means=slide_means(table, slides), **options).probability
    assert roc_auc_score(labels, with_means) > roc_auc_score(labels, plain) + 0.03


def test_means_gain_nothing_if_slides_are_not_informative():
    table, labels, slides, folds = cohort(2, lambda _, n: np.full(n, 0.5))
    options = {"combiners": ("stack",), "draws": 50}
    plain = nest(NAMES, table, labels, slides, folds, **options).probability
    with_means = nest(NAMES, table, labels, slides, folds, means=slide_means(table, slides), **options).probability
    assert abs(roc_auc_score(labels, with_means) - roc_auc_score(labels, plain)) < 0.01


def test_a_member_that_only_identifies_the_slide_gains_nothing():
    table, labels, slides, folds = cohort(6, lambda rng, n: rng.random(n), slides=30)
    noise = np.random.default_rng(7).random(30)[slides.astype(int)]
    options = {"combiners": ("stack",), "draws": 50}
    known = nest(NAMES, table, labels, slides, folds, means=slide_means(table, slides), **options).probability
    with_noise = np.column_stack([table, noise])
    noisy = nest(
        (*NAMES, "name"), with_noise, labels, slides, folds, means=slide_means(with_noise, slides), **options
    ).probability
    assert roc_auc_score(labels, noisy) < roc_auc_score(labels, known) + 0.003


def test_held_out_labels_change_nothing():
    table, labels, slides, folds = cohort(3, lambda rng, n: rng.random(n), slides=9, each=16)
    means = slide_means(table, slides)
    options = {"combiners": ("mean", "weights"), "draws": 50}
    first = nest(NAMES, table, labels, slides, folds, means=means, **options)
    inside = folds == 1
    flipped = np.where(inside, 1 - labels, labels)
    second = nest(NAMES, table, flipped, slides, folds, means=means, **options)
    np.testing.assert_array_equal(first.probability[inside], second.probability[inside])
    assert (first.probability[~inside] != second.probability[~inside]).any()


def test_leaving_a_member_out_removes_its_mean():
    table, labels, slides, folds = cohort(4, lambda rng, n: rng.random(n), slides=9, each=16)
    means = slide_means(table, slides)
    columns = without_each("stack", NAMES, table, labels, slides, folds, means=means)
    alone = without_each("stack", NAMES[:1], table[:, :1], labels, slides, folds, means=means[:, :1])
    np.testing.assert_array_equal(columns[:, 2], alone[:, 0])


def test_a_member_relative_to_its_slide_adds_no_mean():
    table, labels, slides, folds = cohort(8, lambda rng, n: rng.random(n), slides=9, each=16)
    names = ("cnn", "logistic_in-slide")
    ensemble = fit_ensemble(
        names, table, labels, slides, folds, means=slide_means(table, slides), combiners=("weights",)
    ).ensemble
    assert len(ensemble.combiner.weights) == 3
    again = type(ensemble).from_dict(ensemble.to_dict())
    means = slide_means(table, slides)
    other = np.column_stack([means[:, 0], np.random.default_rng(0).random(len(table))])
    assert again.predict(table, means).tolist() == ensemble.predict(table, other).tolist()


def test_an_ensemble_with_means_requires_them():
    table, labels, slides, folds = cohort(5, lambda rng, n: rng.random(n), slides=9, each=16)
    means = slide_means(table, slides)
    ensemble = fit_ensemble(NAMES, table, labels, slides, folds, means=means, combiners=("weights",)).ensemble
    assert ensemble.slide_means
    assert len(ensemble.combiner.weights) == 4
    assert type(ensemble).from_dict(ensemble.to_dict()).predict(table, means).tolist() == (
        ensemble.predict(table, means).tolist()
    )
    with pytest.raises(ValueError, match=r"means must have the shape of probabilities, \(144, 2\); got None"):
        ensemble.predict(table)
