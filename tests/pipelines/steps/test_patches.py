"""Step 1 as a whole: dropped patches are listed, duplicates stay in one fold, and memory use is constant."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoblend.data.audit.flags import FLAGS
from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.pipelines.commands import one_step
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.printed_tables import show_audit
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps import model_set
from histoblend.pipelines.steps.patches import settings, split_warnings
from tests import ROOT


def run_of(root, *settings, config="phantom"):
    return plan_run(load_config(ROOT / "configs" / f"{config}.toml", ["name=r", *settings]), root)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("runs"), "data.faults=true", "data.n=1200", "data.size=48", "engine.workers=2")
    return run, one_step(run, "prepare")


def test_dropped_patches_are_listed_and_removed(planted):
    run, folder = planted
    audit = pd.read_parquet(folder / "audit.parquet")
    table, set_aside = patches_of(run).table, pd.read_csv(folder / "set_aside.csv")
    dropped = audit[audit["dropped_by"] != ""]
    assert len(dropped) > 10
    assert dropped["patch_id"].tolist() == set_aside["patch_id"].tolist()
    assert set_aside["reason"].str.contains(r"\(audit\.").all()
    assert audit.loc[audit["dropped_by"] == "", "patch_id"].tolist() == table["patch_id"].tolist()
    assert len(patches_of(run).pixels) == len(table) == 1200 - len(dropped)


def test_pixels_match_their_rows_after_dropping(planted):
    import hashlib

    patches = patches_of(planted[0])
    for row in (0, 500, len(patches.table) - 1):
        assert hashlib.sha256(patches.pixels[row].tobytes()).hexdigest() == patches.table["sha256"].iloc[row]


def test_duplicates_and_patches_without_slide_stay_in_one_fold(planted):
    run, folder = planted
    table = patches_of(run).table
    part = table["split"] + table["fold"].astype(str)
    audit = pd.read_parquet(folder / "audit.parquet").query("dropped_by == ''").reset_index(drop=True)
    first = audit["duplicate_of"].where(audit["duplicate_of"] != "", audit["patch_id"])
    assert (part.groupby(first).nunique() == 1).all()
    assert first.duplicated().sum() > 5
    assert (table.loc[table["slide"] == "(unmapped)", "group"] == "(unmapped)").all()
    assert part[table["slide"] == "(unmapped)"].nunique() == 1


def test_the_printed_audit_shows_flags_and_actions(planted, capsys):
    run, folder = planted
    show_audit(run)
    said = capsys.readouterr().out
    for flag in FLAGS:
        assert flag.name in said
    assert "8 dropped" in said or "contradictory" in said
    assert str(folder / "audit.parquet") in said
    examples = pd.read_csv(folder / "examples.csv")
    pictures = np.load(folder / "examples.npy")
    assert pictures.shape == (len(examples), 48, 48, 3)
    assert {"exact_duplicate", "near_duplicate", "blank", "pen"} <= set(examples["flag"])


def test_undecodable_patches_have_a_row_in_the_audit(kaggle_folder, tmp_path):
    folder = kaggle_folder()
    empty = next((folder / "train").glob("0005*"))
    empty.write_bytes(b"")
    step = one_step(run_of(tmp_path, "split.folds=3", f"data.path='{folder}'", config="kaggle"), "prepare")
    audit = pd.read_parquet(step / "audit.parquet")
    assert len(audit) == 60
    assert audit.loc[audit["undecodable"], "patch_id"].tolist() == [empty.stem]
    assert pd.read_csv(step / "audit.csv").set_index("flag").loc["undecodable", "patches"] == 1


def test_inferred_slides_are_marked(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder(n=80)
    settings = ["split.folds=3", "split.groups=infer", f"data.path='{folder}'"]
    with pytest.raises(InputError, match="is for data without slides; got a slide for 80 of 80 patches"):
        one_step(run_of(tmp_path, *settings, config="kaggle"), "prepare")
    (folder / "patch_id_wsi.csv").unlink()
    step = one_step(run_of(tmp_path, *settings, config="kaggle"), "prepare")
    table = PatchSet.open(step).table
    assert table["slide"].str.startswith("(inferred ").all()
    assert (table["group"] == table["slide"]).all()
    assert "slides are inferred: " in capsys.readouterr().out


def test_a_split_by_patch_is_possible_and_called_optimistic(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    run = run_of(tmp_path, "split.folds=3", "split.groups=patch", f"data.path='{folder}'", config="kaggle")
    one_step(run, "prepare")
    assert patches_of(run).table["group"].nunique() == 60
    assert "slides are known but were not used" in capsys.readouterr().out


def test_a_split_by_patch_needs_no_minimum_of_slides(tmp_path):
    # Five folds and four test slides would need nine.
    few = ("data.n=80", "data.slides=6", "data.size=48")
    with pytest.raises(InputError, match=r"need at least 9 slides; got 6. Use --set split.folds=2.$"):
        one_step(run_of(tmp_path, *few), "prepare")
    step = one_step(run_of(tmp_path, *few, "split.groups=patch"), "prepare")
    assert PatchSet.open(step).table["fold"].nunique() == 6


def test_memory_does_not_grow_with_the_number_of_patches(tmp_path):
    """Peak memory for 2,000 and 5,500 patches, whose pixels differ by 97 MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peak memory of a process is read from /proc")  # getrusage counts the parent's, before exec
    peaks = []
    for n in (2000, 5500):
        code = (
            "from pathlib import Path; from histoblend.pipelines.plan import plan_run; "
            "from histoblend.pipelines.commands import one_step; "
            "from histoblend.pipelines.config_files import load_config; "
            f"config = load_config(Path('configs/phantom.toml'), ['data.n={n}', 'name=n{n}', 'data.faults=true', "
            "'engine.workers=1']); "
            f"one_step(plan_run(config, Path({str(tmp_path)!r})), 'prepare'); "
            f"print(Path({str(status)!r}).read_text().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 60, peaks
    assert peaks[1] < 700


def test_an_audit_that_drops_all_patches_gives_the_main_reason(kaggle_folder, tmp_path):
    folder = kaggle_folder()
    first = next((folder / "train").glob("*.tif")).read_bytes()
    for path in (folder / "train").glob("*.tif"):
        path.write_bytes(first)
    run = run_of(tmp_path, f"data.path='{folder}'", "split.folds=2", config="kaggle")
    with pytest.raises(InputError, match=r"the audit drops all 60 \(most often: .*audit.contradictory"):
        one_step(run, "prepare")


def test_control_characters_are_escaped_in_the_terminal(capsys):
    screen = Screen()
    screen.say("a\x1b[31mb\nc\u202ed × –")
    screen.warn("\x07")
    screen.table(pd.DataFrame({"name": ["[red]a[/red]\x1b"]}), "t")
    said = capsys.readouterr().out
    assert said.startswith("a\\x1b[31mb\\nc\\u202ed × –\nwarning: \\x07\n")
    assert "[red]a[/red]\\x1b" in said


def test_the_pixel_size_rebuilds_the_models_but_not_the_patches(tmp_path):
    configs = [load_config(ROOT / "configs" / "phantom.toml", [f"data.mpp={mpp}"]) for mpp in (0, 0.25)]
    assert settings(configs[0]) == settings(configs[1])
    first, second = (model_set.inputs(plan_run(config, tmp_path)) for config in configs)
    assert first != second


@pytest.mark.parametrize(
    ("first", "other"),
    [("G31", "g31"), ("G31", "G31.svs"), ("3", "3.0"), ("03", "3")],
    ids=["case", "ending", "3.0", "03"],
)
def test_look_alike_slide_names_are_warned_about(first, other):
    slides = pd.Series([first, other, *(f"S{n}" for n in range(10))], dtype="string")
    table = pd.DataFrame({"slide": slides, "group": slides, "split": "train", "fold": 0})
    (warning,) = split_warnings(table, {"set_aside": 0})
    assert f"{first!r} and {other!r}" in warning
    assert "may be on both sides of the split" in warning
    assert split_warnings(table[1:], {"set_aside": 0}) == []


def test_tables_that_were_not_used_are_warned_about():
    table = pd.DataFrame({"slide": pd.Series(["S1"], dtype="string"), "group": "S1", "split": "train", "fold": 0})
    assert split_warnings(table, {"set_aside": 0, "source": {"unused": ["x.tsv was not read"]}}) == [
        "x.tsv was not read"
    ]


def test_look_alike_class_names_are_warned_about():
    table = pd.DataFrame({"slide": pd.Series(["S1"], dtype="string"), "group": "S1", "split": "train", "fold": 0})
    classes = {name: {"label": 1, "patches": 3} for name in ("Tumour", "normal", "tumour")}
    (warning,) = split_warnings(table, {"set_aside": 0, "source": {"classes": classes}})
    assert "'Tumour' and 'tumour'" in warning
