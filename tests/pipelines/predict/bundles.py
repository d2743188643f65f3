"""A finished run's bundle, with an ensemble and a network added."""

import json
import shutil

from histoblend.features.networks.backend import load_keras
from histoblend.models.bundle import INDEX, open_bundle, seal_bundle
from histoblend.models.cnn import KERAS_FILE
from tests.pipelines.predict.small_installation import write_red_network


class Mean:
    """Replaces an ensemble: the plain mean of its members."""

    slide_means = False

    def __init__(self, members, thresholds):
        self.members, self.thresholds = members, thresholds

    @classmethod
    def from_dict(cls, state):
        return cls(tuple(state["members"]), state["thresholds"])

    def predict(self, probabilities, means=None):
        return probabilities.mean(axis=1)


def with_more(bundle, target, stored, *, keras_file=False):
    """Copy a bundle and add an ensemble and a network, which has a Keras file too in bundles of real runs."""
    shutil.copytree(bundle, target, ignore=shutil.ignore_patterns(INDEX))
    (target / "cnn").mkdir()
    write_red_network(target / "cnn")
    if keras_file:
        keras = load_keras()
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(target / "cnn" / KERAS_FILE)
    (target / "ensemble.json").write_text(json.dumps(stored))
    content = {
        key: value for key, value in open_bundle(bundle).index.items() if key not in ("format", "files", "digest")
    }
    content["models"]["cnn"] = {**content["models"]["logistic_colour"], "columns": "cnn"}
    seal_bundle(target, content)
    return target
