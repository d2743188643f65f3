"""Bundle: the same probabilities after a round trip; anything altered, missing or foreign is refused."""

import io
import json
import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.models.bundle import index_digest, open_bundle, seal_bundle
from histoblend.models.heads.registry import HEADS, load_head, new_head


@pytest.fixture
def fitted():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    X[:, 1] += y
    return {name: new_head(name, 0).fit(X, y, np.arange(200) // 10) for name in HEADS}, X


@pytest.fixture
def bundle(fitted, tmp_path):
    for name, head in fitted[0].items():
        head.save(tmp_path / "b" / "heads" / name)
    np.save(tmp_path / "b" / "numbers.npy", np.arange(3))
    (tmp_path / "b" / "state.json").write_text('{"kept": 1}')
    seal_bundle(tmp_path / "b", {"run": "r"})
    return tmp_path / "b"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_survives_the_round_trip(fitted, bundle, name):
    heads, X = fitted
    again = open_bundle(bundle).head(name)
    np.testing.assert_array_equal(again.predict_proba(X), heads[name].predict_proba(X))
    assert again.get_params() == heads[name].get_params()
    np.testing.assert_array_equal(again.classes_, heads[name].classes_)


def test_an_intact_bundle_opens_and_lists_its_files(bundle):
    opened = open_bundle(bundle)
    assert opened.index["run"] == "r"
    assert set(opened.index["files"]) == {
        "heads/logistic/head.skops",
        *(f"heads/xgboost/booster-{i}.json" for i in range(3)),
        "heads/xgboost/head.json",
        "numbers.npy",
        "state.json",
    }
    assert opened.array("numbers.npy").tolist() == [0, 1, 2]
    assert opened.json("state.json") == {"kept": 1}
    assert opened.json("none.json") is None


def test_the_loaded_bytes_are_the_checked_bytes(fitted, bundle):
    """Files that change after the check have no effect."""
    opened = open_bundle(bundle)
    for path in (bundle / "heads").rglob("*.*"):
        path.write_bytes(b"changed")
    np.testing.assert_array_equal(
        opened.head("xgboost").predict_proba(fitted[1]), fitted[0]["xgboost"].predict_proba(fitted[1])
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def rewrite(folder, change):
    """Change the index and update its digest, as an attacker would."""
    index = json.loads((folder / "bundle.json").read_text())
    change(index)
    (folder / "bundle.json").write_text(json.dumps({**index, "digest": index_digest(index)}))


def list_path(name):
    entry = {"bytes": 1, "sha256": "0" * 64}
    return lambda b: rewrite(b, lambda index: index["files"].update({name: entry}))


def foreign(name, content):
    """Add a file and list it in the index."""

    def damage(folder):
        (folder / name).write_bytes(content)
        seal_bundle(folder, {"run": "r"})

    return damage


def archive(config, *more):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("config.json", json.dumps(config))
        with h5py.File(io.BytesIO(), "w") as weights:
            weights.flush()
            made.writestr("model.weights.h5", weights.id.get_file_image())
        for name in more:
            made.writestr(name, b"")
    return file.getvalue()


def layer(module, name, registered=None):
    return {"config": {"layers": [{"module": module, "class_name": name, "registered_name": registered}]}}


def link(folder):
    (folder / "state.json").rename(folder.parent / "elsewhere.json")
    (folder / "state.json").symlink_to(folder.parent / "elsewhere.json")


PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{"an": "object"}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: flip(b / "heads/xgboost/booster-1.json"), r"heads/xgboost/booster-1.json was altered"),
        (lambda b: (b / "numbers.npy").write_bytes(b"x" * 10**6), r"numbers.npy was altered"),
        (lambda b: (b / "heads/logistic/head.skops").unlink(), r"heads/logistic/head.skops is missing"),
        (lambda b: (b / "extra.pkl").write_bytes(b"x"), r"extra.pkl is not listed"),
        (link, "state.json is a link"),
        (
            lambda b: rewrite(b, lambda index: index.update(format=2)),
            r"b: expected bundle format 7; got 2\. An earlier version made it: make the bundle again with this "
            r"version\.$",
        ),
        (
            lambda b: rewrite(b, lambda index: index.update(format=8)),
            r"b: expected bundle format 7; got 8\. Use the version that made it, or make the bundle again",
        ),
        (lambda b: (b / "bundle.json").write_text("{"), "expected JSON"),
        (lambda b: (b / "bundle.json").write_text("[]"), "expected a JSON object; got list"),
        (lambda b: (b / "bundle.json").write_text("[" * 10**6), "expected JSON"),
        (lambda b: (b / "bundle.json").write_text(" " * (32 * 2**20 + 1)), "expected at most 33554432 bytes"),
        (lambda b: (b / "bundle.json").unlink(), "expected a bundle with bundle.json; there is none"),
        (
            lambda b: (b / "bundle.json").write_text((b / "bundle.json").read_text().replace('"r"', '"q"')),
            "bundle.json was altered",
        ),
        (list_path("../outside.json"), "expected paths inside the bundle; got '../outside.json'"),
        (list_path("heads/../../outside.json"), "expected paths inside the bundle"),
        (list_path("/etc/passwd"), "expected paths inside the bundle; got '/etc/passwd'"),
        (list_path("C:\\outside.json"), "expected paths inside the bundle"),
        (list_path(""), "expected paths inside the bundle"),
        (foreign("model.pkl", b"x"), "model.pkl: expected one of .*got another file type"),
        (foreign("objects.npy", PICKLED.getvalue()), "objects.npy: expected an array of numbers"),
        (foreign("list.json", b"[1]"), "list.json: expected a JSON object; got list"),
        (foreign("a.keras", b"no archive"), "a.keras: expected a zip archive"),
        (foreign("a.keras", archive(layer("keras.layers", "Lambda"))), "got keras.layers.Lambda"),
        (foreign("a.keras", archive(layer("os", "system"))), "got os.system"),
        (foreign("a.keras", archive(layer("keras.layers", "Mine", "pack>Mine"))), "got keras.layers.Mine"),
        (foreign("a.keras", archive({}, "code.py")), "; got code.py"),
    ],
    ids=[
        "byte", "longer", "missing", "foreign file", "link", "older", "newer", "broken", "no object", "deep", "huge",
        "no index", "index", "up", "up inside", "absolute", "drive", "empty", "pickle", "objects", "list", "no archive",
        "lambda", "module", "registered", "member",
    ],
)  # fmt: skip
def test_a_damaged_or_altered_bundle_is_refused(bundle, damage, message):
    damage(bundle)
    with pytest.raises(InputError, match=message):
        open_bundle(bundle)


LITTER = (
    ".DS_Store", "heads/._head.skops", "Thumbs.db", "heads/logistic/desktop.ini", "heads/xgboost/head.json~",
    ".ipynb_checkpoints/state-checkpoint.json", "heads/.ipynb_checkpoints/head.skops", "__MACOSX/state.json",
)  # fmt: skip


def add_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"left behind")


@pytest.fixture
def opened(monkeypatch):
    """Paths of all files that are opened as part of a bundle."""
    paths = []
    real = os.open

    def recorded_open(path, *more):
        paths.append(path)
        return real(path, *more)

    monkeypatch.setattr("histoblend.models.bundle.os.open", recorded_open)
    return paths


def test_files_that_operating_systems_leave_behind_are_ignored(bundle, opened):
    before = open_bundle(bundle)
    opened.clear()
    add_files(bundle, LITTER)
    (bundle / ".hidden.json").symlink_to("/etc/passwd")
    after = open_bundle(bundle)
    assert (after.index, after.contents) == (before.index, before.contents)
    assert {path.relative_to(bundle).as_posix() for path in opened} == {"bundle.json", *before.contents}
    load_head(bundle / "heads" / "xgboost")
    seal_bundle(bundle, {"run": "r"})
    assert open_bundle(bundle).index == before.index


@pytest.mark.parametrize("name", ["x.keras", "x.json", "heads/x.npy", "heads/logistic/x.skops", "x.onnx", "x.JSON"])
def test_an_unlisted_file_is_refused_and_never_opened(bundle, opened, name):
    add_files(bundle, [name])
    with pytest.raises(InputError, match=f"{name} is not listed. Move it away"):
        open_bundle(bundle)
    assert opened == [bundle / "bundle.json"]


def test_an_archive_of_standard_keras_layers_is_accepted(bundle):
    foreign("a.keras", archive(layer("keras.layers", "Conv2D"), "metadata.json"))(bundle)
    assert "a.keras" in open_bundle(bundle).contents


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_in_a_head_is_never_loaded(bundle, tmp_path):
    foreign("heads/logistic/head.skops", pickle.dumps(Touch(tmp_path / "touched")))(bundle)
    with pytest.raises(InputError, match=r"head.skops: expected a zip archive"):
        open_bundle(bundle)
    with pytest.raises(InputError, match=r"head.skops: expected a zip archive"):
        load_head(bundle / "heads" / "logistic")
    assert not (tmp_path / "touched").exists()


def test_an_untrusted_type_is_refused(bundle):
    import skops.io

    from histoblend.models.heads.boosted import XGBoostHead

    foreign("heads/logistic/head.skops", skops.io.dumps({"head": XGBoostHead()}))(bundle)
    message = (
        "expected only histoblend.models.heads.logistic.LogisticHead; got histoblend.models.heads.boosted.XGBoostHead"
    )
    with pytest.raises(InputError, match=message):
        open_bundle(bundle)
