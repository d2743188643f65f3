"""A third head needs one class and one row in the table. It is fitted, stored, loaded, explained and named."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.data.storage.expansion import read_json
from histoblend.models.bundle import open_bundle
from histoblend.models.heads.head import Head
from histoblend.models.heads.registry import HEADS
from histoblend.models.inspection.partial_dependence import partial_dependence
from histoblend.models.inspection.shapley import attribute
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, plan_run
from histoblend.pipelines.results import feature_sets, predictions_of
from histoblend.reports.words import model_words
from tests import ROOT
from tests.torture.bundles import SETTINGS


class CentroidHead(Head):
    """Log odds decrease with the squared distance from the mean of the positives, in standard deviations."""

    display_name = "nearest centroid"
    marker = "centroid.json"
    importance = "coefficient"
    additive = True

    def __init__(self, seed=0):
        self.seed = seed

    def fit(self, X, y, groups=None):
        X, codes, _ = self._start_fit(X, y, groups)
        spread = X.std(axis=0, dtype=np.float64)
        self.scale_ = np.where(spread > 1e-6, spread, 1.0)
        near, far = (X[codes == label].mean(axis=0, dtype=np.float64) / self.scale_ for label in (1, 0))
        self.weight_, self.base_ = (near - far) / X.shape[1], float(((far**2 - near**2) / 2).mean())
        return self

    def _positive(self, X):
        return expit((X / self.scale_) @ self.weight_ + self.base_)

    def column_measures(self):
        check_is_fitted(self)
        return {"coefficient": self.weight_}

    def contributions(self, rows):
        return rows / self.scale_ * self.weight_, self.base_

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        state = {"seed": self.seed, "base": self.base_, "classes": self.classes_.tolist()}
        state |= {"scale": self.scale_.tolist(), "weight": self.weight_.tolist()}
        (folder / self.marker).write_text(json.dumps(state))

    @classmethod
    def load(cls, files, where):
        state = read_json(f"{where}/{cls.marker}", files[cls.marker])
        head = cls(state["seed"])
        head.scale_, head.weight_, head.base_ = np.array(state["scale"]), np.array(state["weight"]), state["base"]
        head.classes_, head.n_features_in_ = np.array(state["classes"]), len(head.weight_)
        return head


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run and its bundle, with the third head and logistic regression."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HEADS, "centroid", f"{__name__}:CentroidHead")
        config = load_config(ROOT / "configs" / "phantom.toml", SETTINGS)
        # The names that a configuration accepts were read before this file added a head.
        heads = config.heads.model_copy(update={"heads": ("logistic", "centroid")})
        run = plan_run(config.model_copy(update={"heads": heads}), tmp_path_factory.mktemp("third"))
        run.leave_out(ENSEMBLE_ONLY)
        yield run, predictions_of(run), open_bundle(run.step("bundle").folder / "bundle")


def test_it_is_fitted_out_of_fold(finished):
    _, predictions, _ = finished
    train = predictions[predictions["split"] == "train"]
    assert roc_auc_score(train["label"], train["prob_centroid_colour"]) > 0.6
    assert predictions["prob_centroid_colour"].between(0, 1).all()


def test_a_bundle_loads_the_same_head(finished):
    run, predictions, bundle = finished
    head = bundle.head("centroid_colour")
    assert type(head) is CentroidHead
    test = (predictions["split"] == "test").to_numpy()
    values, _ = feature_sets(run)["colour"]
    np.testing.assert_array_equal(head.predict_proba(values[test])[:, 1], predictions["prob_centroid_colour"][test])


def test_it_provides_what_reports_need(finished):
    run, _, bundle = finished
    head = bundle.head("centroid_colour")
    values, columns = feature_sets(run)["colour"]
    X = np.asarray(values[:40])
    attribution = attribute(head, X, columns)
    np.testing.assert_allclose(attribution.log_odds, logit(head.predict_proba(X)[:, 1]), atol=1e-5)
    other = X.copy()
    other[:, [3, 0]] = X[::-1, [3, 0]]
    score = head.with_replaced(X)
    np.testing.assert_array_equal(score([3, 0], other[:, [3, 0]]), head.predict_proba(other)[:, 1])
    other = X.copy()
    other[:, 2] = X[5, 2]
    curve = partial_dependence(head, X)(2, X[5:6, 2])
    np.testing.assert_allclose(curve, [head.predict_proba(other)[:, 1].mean()], rtol=1e-6)


def test_it_has_a_display_name(finished):
    assert model_words("centroid_colour") == "nearest centroid on colour"


def test_on_a_distributed_table_the_error_says_what_to_set():
    with pytest.raises(InputError, match=r"^nearest centroid: .*Set engine\.heads=whole\.$"):
        CentroidHead().fit_spread(None)
