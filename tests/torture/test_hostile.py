"""Untrusted files: their code does not run, and their paths stay inside the target."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.sources.archives import unpack_archive
from histoblend.data.sources.folder import FolderSource
from histoblend.data.sources.images import read_image
from histoblend.data.sources.kaggle import KaggleSource
from histoblend.data.sources.labels import slides_of
from histoblend.data.sources.pcam import PcamSource
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.storage.atomic import write_atomically
from histoblend.data.storage.parts import Parts
from histoblend.features.networks.backbones import load_backbone
from histoblend.features.networks.onnx_export import open_session
from histoblend.features.networks.weights import read_checkpoint
from histoblend.models.blends import choose_blends
from histoblend.models.bundle import index_digest, open_bundle, seal_bundle
from histoblend.models.file_checks import check_content
from histoblend.models.predictor import open_predictor
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT
from tests.data.sources.test_archives import OUTSIDE, tarred, zipped
from tests.processes import run_command

pytestmark = pytest.mark.torture
PACKAGES = ("data", "features", "models", "reports", "pipelines")
#: Functions that run code from a file, or a shell.
RUNS_CODE = {
    "pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "torch.load", "dill.load", "dill.loads",
    "shelve.open", "marshal.load", "marshal.loads", "yaml.load", "eval", "exec", "os.system", "os.popen",
    "skops.io.load", "keras.models.load_model",
}  # fmt: skip


def calls():
    """Every call in the packages: its location, the called dotted name, and the source of its keyword arguments."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_package_runs_code_from_files():
    seen = list(calls())
    for location, name, keywords in seen:
        assert name not in RUNS_CODE, location
        assert keywords.get("allow_pickle", "False") == "False", location
        assert keywords.get("shell", "False") == "False", location
        if name.endswith("load_model") and "keras" in name:
            assert keywords["safe_mode"] == "True", location
        if name == "skops.io.loads":
            assert keywords["trusted"] == "TRUSTED", location
    assert {name for _, name, _ in seen} >= {"np.load", "NpzFile", "skops.io.loads", "keras.saving.load_model"}
    unpicklers = [location for location, name, _ in seen if name.endswith("Unpickler")]
    assert all(location.startswith("features/networks/weights.py") for location in unpicklers)


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def payloads(touched):
    """Content that makes a folder when unpickled, by file format."""
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Touch(touched)], dtype=object), allow_pickle=True)
    np.savez(archive, values=np.array([Touch(touched)], dtype=object), allow_pickle=True)
    return {"pickle": pickle.dumps(Touch(touched)), "npy": array.getvalue(), "npz": archive.getvalue()}


def test_the_payloads_would_run(tmp_path):
    for number, (kind, content) in enumerate(payloads(tmp_path / "touched").items()):
        if kind == "pickle":
            pickle.loads(content)  # noqa: S301 - the point of the test
        else:
            made = np.load(io.BytesIO(content), allow_pickle=True)
            _ = made["values"] if kind == "npz" else made
        assert (tmp_path / "touched").exists(), number
        (tmp_path / "touched").rmdir()


def load_all(folder):
    """Open a bundle and all its models."""
    bundle = open_bundle(folder)
    for blend in filter(None, choose_blends(bundle, "xgboost_colour")):
        with open_predictor(bundle, blend.members):
            pass


def test_payloads_in_a_bundle_do_not_run(sound, tmp_path, faults):
    """Each file of a bundle is replaced by a payload, and the bundle is sealed again."""
    touched, tried = tmp_path / "touched", 0
    names = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.is_file()]
    index = json.loads((sound / "bundle.json").read_text())
    more = {key: index[key] for key in index.keys() - {"files", "digest", "format"}}
    for name in [*names, Path("network.onnx"), Path("network.keras"), Path("code.pkl")]:
        for content in payloads(touched).values():
            folder = tmp_path / "bundle"
            shutil.copytree(sound, folder)
            (folder / name).write_bytes(content)
            if name.name != "bundle.json":
                seal_bundle(folder, more)
            # The model card is text that no code reads.
            if name.suffix == ".md":
                load_all(folder)
            else:
                with pytest.raises(InputError):
                    load_all(folder)
            assert not touched.exists(), name
            shutil.rmtree(folder)
            tried += 1
    faults("a pickle in place of a file of a bundle, with matching digests", tried, tried, "error: …; no code runs")


def test_payloads_in_data_do_not_run(tmp_path, faults):
    """A payload in place of an image, a table of labels or slides, or an HDF5 file."""
    touched, tried = tmp_path / "touched", 0
    for number, content in enumerate(payloads(touched).values()):
        data = tmp_path / f"data-{number}"
        (data / "train").mkdir(parents=True)
        (data / "train" / "a.tif").write_bytes(content)
        (data / "a.png").write_bytes(content)
        for name in ("labels.csv", "train_labels.csv", "camelyonpatch_level_2_split_train_x.h5",
                     "camelyonpatch_level_2_split_train_y.h5"):  # fmt: skip
            (data / name).write_bytes(content)
        reason = read_image(data / "a.png", np.zeros((96, 96, 3), np.uint8), resize="refuse")
        assert "not an image" in reason
        _, reasons = PatchReader(data / "train", 96, convert=False).read(["a.tif"])
        assert set(reasons) == {0}
        sources = (
            lambda data=data: FolderSource(data),
            lambda data=data: KaggleSource(data),
            lambda data=data: PcamSource(data),
            lambda data=data: slides_of(pd.Series(["a"]), data / "labels.csv"),
        )
        for source in sources:
            with pytest.raises(InputError):
                source()
            tried += 1
        assert not touched.exists()
        tried += 2
    faults(
        "a pickle in place of an image, a table or an HDF5 file", tried, tried, "set aside with the reason, or error: …"
    )


def test_payloads_in_caches_and_weights_do_not_run(tmp_path, faults, at_length):
    """A payload in place of an exported network, a shard, a fit, a checkpoint of training, or a file of weights."""
    touched, tried = tmp_path / "touched", 0
    for content in payloads(touched).values():
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(InputError):
            read_checkpoint(tmp_path / "file.pth")
        if at_length:  # Keras needs seconds to import
            (tmp_path / "file.weights.h5").write_bytes(content)
            with pytest.raises(InputError):
                load_backbone("efficientnet-lite0", weights=str(tmp_path / "file.weights.h5"))
            tried += 1
        # The payload gets a valid seal, so it must be refused because of its content.
        parts = Parts(tmp_path / "parts")
        write_atomically(parts.path("sealed"), lambda file, content=content: file.write(content), seal=True)
        assert "sealed" in parts
        assert parts.find("sealed") is None
        with pytest.raises(Exception):  # noqa: B017, PT011 - any error of ONNX Runtime
            open_session(content)
        assert not touched.exists()
        tried += 3
    faults("a pickle in place of weights, a checkpoint or an exported network", tried, tried, "an error; no code runs")


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_archive_members_outside_the_target_are_refused(tmp_path, pack, faults):
    for name in OUTSIDE:
        archive = pack(tmp_path / "archive", {"good": b"1", name: b"evil"})
        with pytest.raises(InputError, match=r"has a path outside the target. Nothing was unpacked") as error:
            unpack_archive(archive, tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["archive"]
    sees = f"error: {error.value}".replace(str(tmp_path), "…")
    faults("a path outside the target in a zip or tar file", len(OUTSIDE), len(OUTSIDE), sees)


def test_bundle_paths_outside_the_bundle_are_refused(sound, faults):
    content = (sound / "bundle.json").read_text()
    names = ["../outside.json", "heads/../../outside.json", "/etc/passwd", "C:\\outside.json", "", "."]
    for name in names:
        index = json.loads(content)
        index["files"][name] = {"bytes": 1, "sha256": "0" * 64}
        (sound / "bundle.json").write_text(json.dumps({**index, "digest": index_digest(index)}))
        with pytest.raises(InputError, match="expected paths inside the bundle") as error:
            open_bundle(sound)
    faults("a path outside the bundle in its index", len(names), len(names), f"error: {error.value}".replace(
        str(sound), "bundle"))  # fmt: skip


def test_an_untrusted_type_in_a_skops_file_is_refused(faults):
    import skops.io

    from histoblend.models.heads.boosted import XGBoostHead
    from histoblend.models.heads.registry import trusted_types

    named = [XGBoostHead(), Path("x"), subprocess.Popen, os.system, re.compile("a")]
    for value in named:
        with pytest.raises(
            InputError, match=r"expected only histoblend.models.heads.logistic.LogisticHead; got "
        ) as error:
            check_content("head.skops", skops.io.dumps({"head": value}), trusted_types())
    faults("a type that is not allowed in a skops file", len(named), len(named), f"error: {error.value}")


def test_keras_own_lambda_layer_is_refused(tmp_path, faults):
    """A Lambda layer is refused by our check of the archive, before Keras sees it."""
    import keras

    from histoblend.features.networks.recipe import Recipe
    from histoblend.features.networks.stored import StoredKeras

    touched = tmp_path / "touched"
    target = str(touched)
    inputs = keras.Input((2,))
    network = keras.Model(inputs, keras.layers.Lambda(lambda x: (open(target, "w").close(), x)[1])(inputs))
    network.save(tmp_path / "network.keras")
    touched.unlink()
    content = (tmp_path / "network.keras").read_bytes()
    with pytest.raises(InputError, match=r"expected known layers of Keras; got .*Lambda"):
        check_content("network.keras", content)
    stored = StoredKeras(Recipe("efficientnet-lite0"), "float32", 1, {None: content})
    with pytest.raises(InputError, match=r"got .*Lambda"):
        stored.build(None)
    assert not touched.exists()
    # A Lambda layer nested in one of Keras' own layers is refused too.
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    deep = {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"layers": [config["config"]["layers"][1]]},
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": [deep]}}))
        archive.writestr("model.weights.h5", weights)
    with pytest.raises(InputError, match=r"got .*Lambda"):
        check_content("network.keras", made.getvalue())
    faults("code in a .keras file", 3, 3, "error: … expected known layers of Keras; got keras.layers.Lambda")


def test_outside_paths_are_refused_in_one_line(tmp_path, faults):
    (tmp_path / "data" / "a").mkdir(parents=True)
    Image.new("RGB", (96, 96)).save(tmp_path / "data" / "a" / "1.png")
    listed = tmp_path / "data" / "labels.csv"
    pd.DataFrame({"file": ["a/1.png", "../../etc/passwd"], "label": [0, 1]}).to_csv(listed, index=False)
    tried = [
        (("prepare", "--config", "configs/folder.toml", "--data", tmp_path / "data"), "without '..'; got '../../etc"),
        (("prepare", "--run", "../../x"), "--run): name: must be a folder name without slashes"),
        (("prepare", "--set", "name=.."), "--set name=..: name: must be a folder name without slashes"),
        (("compare", "../../x", "y"), "'../../x'"),
        (("prepare", "--set", "name=a\x1b[31mb", "--set", "data.n=x\x1b[2J"), "data.n"),
    ]
    for arguments, words in tried:
        done = run_command(*arguments, "--runs", tmp_path / "runs")
        said = done.stderr
        assert done.returncode == 2, said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert words in said
        assert "\x1b" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) in (["data"], ["data", "runs"])
    faults("a path or run name that leads outside its folder", len(tried), len(tried), "error: … in one line")


def test_every_requirement_is_pinned_with_hashes():
    for path in sorted(ROOT.glob("requirements*.txt")):
        text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
        assert len(blocks) > 10
        for block in blocks:
            assert re.match(r"[\w.\-\[\]]+==\S+", block), f"{path.name}: {block[:60]}"
            assert "--hash=sha256:" in block, f"{path.name}: {block[:60]}"


def test_an_inconsistent_sealed_bundle_is_refused_before_the_first_file(sound, tmp_path, faults):
    """The altered bundle is sealed again, so all digests match."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (96, 96)).save(images / "1.png")
    whole = json.loads((sound / "bundle.json").read_text())
    state = json.loads((sound / "heads/xgboost_colour/head.json").read_text())
    changes = {
        "patch": [{}, {"size": "96", "resize": "refuse"}, {"size": 10**9, "resize": "refuse"}, None],
        "prevalence": [float("nan"), 2, "0.4", True],
        "models": [{}, [], {"x": {}}, {"x_colour": next(iter(whole["models"].values()))}],
        "features": [{"families": ["none"], "code": ""}, {"families": []}, 1],
        "columns": [{}, {"colour": ["none"]}, {"colour": []}, {"colour": [1]}],
        "networks": [{}, [1], [{}]],
        "libraries": [[], {"numpy": 2}],
    }
    indices = [{**whole, key: value} for key, values in changes.items() for value in values]
    indices += [{name: value for name, value in whole.items() if name != key} for key in changes]
    heads = [{}, {**state, "boosters": [[0]]}, {**state, "boosters": 3}, {**state, "classes": None}]
    heads += [{**state, "columns": 3}, {**state, "boosters": [[10**6] * 132] * 3}, {**state, "parameters": []}]
    for index, head in [*((index, state) for index in indices), *((whole, head) for head in heads)]:
        folder = tmp_path / "bundle"
        shutil.copytree(sound, folder)
        (folder / "heads/xgboost_colour/head.json").write_text(json.dumps(head))
        seal_bundle(folder, {name: value for name, value in index.items() if name not in ("files", "digest", "format")})
        with pytest.raises(InputError, match=r"\.$"):
            predict_folder(
                folder, images, tmp_path / "o.csv", options=Options(model="" if head is state else "xgboost_colour"),
                screen=Screen(),
            )  # fmt: skip
        shutil.rmtree(folder)
    assert not (tmp_path / "o.csv").exists()
    tried = len(indices) + len(heads)
    faults("an inconsistent bundle with matching digests", tried, tried, "error: … Get the bundle again")
