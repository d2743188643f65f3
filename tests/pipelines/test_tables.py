"""Sets of columns in files, assembled piece by piece, equal those in memory."""

import json

import numpy as np
import pandas as pd
import pytest

from histoblend.features.handcrafted.families import columns, compute
from histoblend.features.slide_stain import normalised_name
from histoblend.models.names import CONTEXT_RUNGS
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.tables import FeatureSets
from tests import ROOT

#: Sets in slide context, except that of the network, whose columns are in no table.
IN_TABLES = tuple(name for name in CONTEXT_RUNGS if name != "cnn-context")


def written(folder, values, names):
    folder.mkdir()
    np.save(folder / "values.npy", values)
    (folder / "columns.json").write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All sets for 60 patches: several slides, one of them too small to trust, and some patches without a slide."""
    root = tmp_path_factory.mktemp("tables")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 48, 48, 3), dtype=np.uint8)
    families = ["colour", "stain"]
    features = written(root / "features", compute(pixels, families), [column.name for column in columns(families)])
    more = np.random.default_rng(1).normal(size=(60, 7)).astype(np.float32)
    embeddings = written(root / "embeddings", more, [f"embedding_x-{number}_rgb_whole" for number in range(7)])
    shown = [normalised_name(column.name) for column in columns(families)]
    normalised = written(root / "features-normalised", compute(pixels[::-1].copy(), families), shown)
    others = written(
        root / "embeddings-normalised",
        more[::-1].copy(),
        [f"embedding_x-{number}-normalised_rgb_whole" for number in range(7)],
    )
    slides = pd.Series(np.random.default_rng(2).choice(["a", "b", "c"], 60)).astype(object)
    slides[:3], slides[50:] = "tiny", None
    names = ["colour", "families", "handcrafted", "embeddings", "both", *IN_TABLES]
    config = load_config(
        ROOT / "configs" / "phantom.toml", [f"features.families={families!r}", f"heads.features={names!r}"]
    )
    folders = {"features": features, "embeddings": embeddings}
    folders |= {"features-normalised": normalised, "embeddings-normalised": others}
    return FeatureSets(config, folders, slides)


@pytest.mark.parametrize("name", ["colour", "stain", "handcrafted", "embeddings", "both", *IN_TABLES])
def test_a_set_in_a_file_is_the_set_in_memory(sets, tmp_path, monkeypatch, name):
    monkeypatch.setattr("histoblend.pipelines.tables.BLOCK", 7)
    values, names = sets[name]
    path = sets.file(name, tmp_path / "scratch", workers=2)
    assert np.load(path).tobytes() == np.ascontiguousarray(values).tobytes()
    assert sets.columns(name) == names
    assert sets.file(name, tmp_path / "scratch") == path
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


def test_no_set_is_assembled_to_know_whether_it_is_configured(sets, monkeypatch):
    monkeypatch.setattr(FeatureSets, "__getitem__", None)
    assert "both-context" in sets
    assert "nuclei" not in sets


def test_sets_in_slide_context_have_raw_and_relative_columns(sets):
    names, (more, others) = sets.columns("handcrafted"), sets["embeddings"]
    both, columns = sets["both-context"]
    context, in_context = sets["context"]
    alone, in_embeddings = sets["embeddings-context"]
    relative, in_slide = sets["in-slide"]
    assert in_slide == in_context[len(names) :]
    np.testing.assert_array_equal(relative, context[:, len(names) :])
    assert in_embeddings[:7] == others
    assert set(columns) == set(in_context) | set(in_embeddings)
    for values, parts in ((context, in_context), (alone, in_embeddings)):
        np.testing.assert_array_equal(both[:, [columns.index(name) for name in parts]], values)
    # By hand: a large slide's column minus its median, in units of 1.4826 median absolute deviations.
    rows = np.flatnonzero(sets._where == pd.Series(sets._where).value_counts().index[0])
    column = more[rows, 0].astype(np.float64)
    middle = np.median(column)
    spread = 1.4826 * np.median(np.abs(column - middle))
    assert len(rows) >= 16
    assert np.allclose(alone[rows, 7], np.clip((column - middle) / spread, -6, 6), atol=1e-5)
    np.testing.assert_array_equal(alone[50:, 7:], more[50:])


@pytest.mark.parametrize("name", ["stain", "embeddings", "both", *IN_TABLES])
def test_some_rows_of_a_set_are_those_of_the_whole_set(sets, monkeypatch, name):
    monkeypatch.setattr("histoblend.pipelines.tables.BLOCK", 7)
    chosen = np.random.default_rng(0).permutation(60)[:41]
    stored, values = sets.stored(name, chosen), sets[name][0]
    assert stored.shape == (41, values.shape[1])
    assert stored[np.arange(41)].tobytes() == np.ascontiguousarray(values[chosen]).tobytes()
    assert stored[3:9].tobytes() == np.ascontiguousarray(values[chosen[3:9]]).tobytes()
    positions, blocks = zip(*stored.blocks(), strict=True)
    assert sorted(np.concatenate(positions).tolist()) == list(range(41))
    assert max(map(len, blocks)) <= 7
