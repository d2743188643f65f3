"""Configuration: every shipped file parses, messages name the nearest key, values keep their type."""

import contextlib
import re
import tomllib
from pathlib import Path

import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.__main__ import with_home
from histoblend.pipelines.config import Config, config_keys, describe
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from tests import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses(path):
    assert load_config(path).name == path.stem


def test_settings_override_the_file():
    config = load_config(
        CONFIGS[0], ["split.folds=3", "seed=7", 'data.path="2020"', "data.path=/a b/c", "heads.heads=['xgboost']"]
    )
    assert (config.split.folds, config.seed, config.data.path) == (3, 7, "/a b/c")
    assert config.heads.heads == ("xgboost",)


PRESETS = sorted((ROOT / "configs" / "presets").glob("*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_changes_only_what_it_states(path):
    stated = tomllib.loads(path.read_text(encoding="utf-8"))
    plain, changed = (
        load_config(Path("kaggle"), preset=name).model_dump(mode="json") for name in ("default", path.stem)
    )
    assert changed.pop("name") == (f"kaggle-{path.stem}" if stated else "kaggle")
    differing = {section: values for section, values in changed.items() if values != plain[section]}
    assert differing == {section: plain[section] | values for section, values in stated.items()}


def test_settings_override_a_preset_and_a_preset_the_file():
    assert load_config(Path("phantom")).cnn.epochs == 2
    config = load_config(Path("phantom"), ["cnn.seeds=2"], {"name='mine'": "RUN=mine (--run)"}, preset="best")
    assert (config.cnn.epochs, config.cnn.seeds, config.cnn.backbone) == (8, 2, "efficientnet-lite0")
    assert config.name == "mine"


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match=r"PRESET .* best, default, fast; got 'fats'\. Did you mean fast\?"):
        load_config(Path("kaggle"), preset="fats")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("split.fold=3", r"unknown key 'split.fold'; did you mean 'split.folds'\?"),
        ("folds=3", r"unknown key 'folds'; did you mean 'split.folds' or 'cnn.folds'\?"),
        ("split.folds=1", r"split.folds: Input should be greater than or equal to 2; got 1"),
        (
            "data.source=kagle",
            "data.source: Input .* 'phantom', 'kaggle', 'pcam', 'wilds' or 'folder'; got 'kagle'",
        ),
        ("split.folds", r"--set must look like section.key=value; got 'split.folds'"),
        ("name.x=1", "'name' is a value, not a section"),
        ("name=../elsewhere", "without slashes or spaces, such as RUN=elsewhere .--run elsewhere.; got '../elsewhere'"),
        ("zzz.qqq=1", "known keys: name, seed, data.source"),
    ],
)
def test_wrong_settings_are_explained(setting, message):
    with pytest.raises(InputError, match=message):
        load_config(CONFIGS[0], [setting])


BAD = ("-5", "abc", "{a=1}", "nan", "['svm']", "[[1]]", "2020-01-01")


@pytest.mark.parametrize("key", ["data", "track", "x.y.z", "data.n.x", "data.card", *(key for key, _ in config_keys())])
def test_an_invalid_setting_is_never_blamed_on_the_file(key):
    said = []
    for value in BAD:
        with contextlib.suppress(InputError):
            load_config(Path("kaggle"), ["split.folds=4", f"{key}={value}"])
            continue
        with pytest.raises(InputError) as error:
            load_config(Path("kaggle"), ["split.folds=4", f"{key}={value}"])
        said.append(str(error.value))
        assert said[-1].startswith(f"--set {key}={value}: ")
    assert said


@pytest.mark.parametrize(
    ("key", "value", "origin"),
    [
        ("data.missing", "ignore", "MISSING=ignore (--missing): data.missing: Input should be 'error' or 'skip'"),
        ("name", "my run", "RUN=my run (--run): name: must be a folder name without slashes or spaces, such as"),
    ],
)
def test_an_invalid_option_is_named(key, value, origin, tmp_path):
    with pytest.raises(InputError, match=re.escape(origin)):
        load_config(Path("kaggle"), [f"{key}=x"], {f"{key}={value}": origin.partition(": ")[0]})
    file = tmp_path / "mine.toml"
    section, _, name = key.rpartition(".")
    file.write_text(f"[{section}]\n{name} = '{value}'" if section else f"{name} = '{value}'")
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}: {key}"):
        load_config(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "expected a TOML file; it does not exist"), ("name = ", "expected a TOML file; got: "), (b"\xff", "got: ")],
    ids=["missing", "broken", "binary"],
)
def test_wrong_files_are_explained(tmp_path, content, message):
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_config_is_frozen_and_every_key_is_described():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3
    keys = dict(config_keys())
    assert len(keys) == len(list(config_keys())) > 20
    assert all(keys.values())


def test_described_settings_can_be_parsed_again():
    config = load_config(CONFIGS[0], ["split.folds=3", "data.path=a b", "heads.heads=['xgboost']"])
    lines = list(describe(config))
    assert "split.folds=3  # cross-validation folds of the other slides" in lines
    assert load_config(CONFIGS[1], [line.partition("  # ")[0] for line in lines]) == config


def test_a_data_card_takes_text_and_numbers():
    card = load_config(CONFIGS[0], ["data.card.tissue=lymph node", "data.card.um_per_pixel=0.5"]).data.card
    assert (card.tissue, card.um_per_pixel, card.label) == ("lymph node", "0.5", "")
    with pytest.raises(InputError, match=r"did you mean 'data\.card\.tissue'"):
        load_config(CONFIGS[0], ["data.card.tisue=lymph node"])


def test_backbones_and_sizes_can_be_single_or_several():
    one = load_config(CONFIGS[0], ["embeddings.size=192", "embeddings.backbone=vgg16"]).embeddings
    assert (one.size, one.backbone) == ((192,), ("vgg16",))
    several = load_config(CONFIGS[0], ["embeddings.size=[0, 192]", 'embeddings.backbone=["vgg16", "vgg19"]']).embeddings
    assert (several.size, several.backbone) == ((0, 192), ("vgg16", "vgg19"))


@pytest.mark.parametrize("setting", ["size=[96, 96]", "size=8", "centre=1", "size=[]", "backbone=[]", "stages=0"])
def test_invalid_sizes_are_explained(setting):
    with pytest.raises(InputError, match=f"embeddings.{setting.partition('=')[0]}"):
        load_config(CONFIGS[0], [f"embeddings.{setting}"])


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("-1", 4), ("-2", 3), ("-9", 1)])
def test_workers_are_counted_from_the_cores(monkeypatch, tmp_path, value, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    assert plan_run(load_config(Path("phantom"), [f"engine.workers={value}"]), tmp_path).workers == expected
    assert plan_run(load_config(Path("phantom"), []), tmp_path).workers == 4


def test_zero_workers_are_refused():
    with pytest.raises(
        InputError, match=r"engine\.workers: .*must be a positive number, or -1 for one per core .* got 0"
    ):
        load_config(Path("phantom"), ["engine.workers=0"])


def test_the_home_folder_can_be_written_as_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    keys = ("data.path", "data.slide_map", "embeddings.weights", "cnn.weights")
    config = load_config(Path("kaggle"), [f"{key}=~/x" for key in keys])
    assert [getattr(getattr(config, section), key) for section, key in (key.split(".") for key in keys)] == [
        "/home/ann/x"
    ] * 4


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--in=~/x", "--in=/home/ann/x"),
        ("data.path=~/x", "data.path=/home/ann/x"),
        ("~/x", "/home/ann/x"),
        ("--data=~", "--data=/home/ann"),
        ("a~/x", "a~/x"),
        ("./~/x", "./~/x"),
        ("--in=~x", "--in=~x"),
    ],
)
def test_options_can_begin_with_a_tilde(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/home/ann")
    assert with_home(argument) == expected
