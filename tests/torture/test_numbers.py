"""Non-finite values, and data sets that are barely or not learnable, through the real commands."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.pipelines.tables import check_finite
from tests.processes import run_command

QUICK = ["features.families=['colour']", "heads.features=['colour']", "report.draws=100", "report.repeats=1"]
QUICK += ["split.folds=2", "engine.workers=1"]

pytestmark = pytest.mark.torture


def labelled_folder(folder, labels, slides):
    """Image files of coloured noise, where positives have less green, and labels.csv."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    names = [f"p{number:04d}.png" for number in range(len(labels))]
    for name, label in zip(names, labels, strict=True):
        pixels = rng.integers(90, 200, (96, 96, 3), dtype=np.uint8)
        pixels[..., 1] -= 60 * np.uint8(label)
        Image.fromarray(pixels).save(folder / name)
    pd.DataFrame({"file": names, "label": labels, "slide": slides}).to_csv(folder / "labels.csv", index=False)
    return folder


def command(tmp_path, step, data, *more):
    settings = [word for setting in [*QUICK, *more] for word in ("--set", setting)]
    places = ["--config", "configs/folder.toml", "--data", data, "--runs", tmp_path / "runs", "--run", "edge"]
    return run_command(step, *places, *settings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_is_named_by_column_and_patch(tmp_path, value, faults):
    patches = pd.DataFrame({"patch_id": [f"p{row}" for row in range(5000)]})
    (tmp_path / "columns.json").write_text(json.dumps(["colour_a", "colour_b"]))
    cells = [(0, 0), (4095, 1), (4096, 0), (4999, 1)]
    for row, column in cells:
        values = np.zeros((5000, 2), np.float32)
        values[row, column] = value
        np.save(tmp_path / "values.npy", values)
        with pytest.raises(InputError, match=f"column '{['colour_a', 'colour_b'][column]}' of patch 'p{row}'.*{value}"):
            check_finite(tmp_path, patches)
    np.save(tmp_path / "values.npy", np.zeros((5000, 2), np.float32))
    check_finite(tmp_path, patches)
    faults(
        f"{value} in a feature table",
        len(cells),
        len(cells),
        "error: … names the column, the patch and the number of values",
    )


IMPOSSIBLE = {
    "2 slides": ([0, 1] * 20, [f"S{row // 20}" for row in range(40)], "need at least 6 slides; got 2"),
    "a class missing in a fold": ([1] * 10 + [0] * 70, [f"S{row // 5}" for row in range(80)], "both labels"),
    "prevalence 0.1 %": ([1] + [0] * 999, [f"S{row // 50}" for row in range(1000)], "20 slides, 1 with tumour"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_data_that_cannot_be_split_are_refused_in_one_line(tmp_path, case, faults):
    labels, slides, words = IMPOSSIBLE[case]
    done = command(tmp_path, "baseline", labelled_folder(tmp_path / "data", labels, slides))
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert words in done.stderr
    assert "np." not in done.stderr
    assert not (tmp_path / "runs" / "edge" / "1-patches").exists()
    faults(case, 1, 1, done.stderr.strip())


POSSIBLE = {
    "a slide with one patch": ([0, 1] * 30, ["lone"] + [f"S{row * 12 // 60}" for row in range(1, 60)]),
    "10 patches in total": ([0, 1] * 5, [f"S{row}" for row in range(10)]),
}


@pytest.mark.parametrize("case", POSSIBLE)
def test_small_data_give_probabilities_without_warnings(tmp_path, case, faults):
    labels, slides = POSSIBLE[case]
    done = command(tmp_path, "heads", labelled_folder(tmp_path / "data", labels, slides))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "RuntimeWarning" not in done.stdout + done.stderr
    probabilities = pd.read_parquet(tmp_path / "runs" / "edge" / "4-heads" / "predictions.parquet").filter(like="prob_")
    assert len(probabilities) == len(labels)
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    faults(case, 1, 1, "nothing: a complete table of probabilities")


def test_constant_and_duplicated_columns_are_accepted(tmp_path, faults):
    """In uniform grey pictures, colour columns repeat each other and saturation columns are constant."""
    labels, slides = [0, 1] * 30, [f"S{row // 5}" for row in range(60)]
    folder = labelled_folder(tmp_path / "data", labels, slides)
    rng = np.random.default_rng(2)
    for path, label in zip(sorted(folder.glob("*.png")), labels, strict=True):
        grey = rng.integers(90, 150, (96, 96, 1), dtype=np.uint8) + np.uint8(40 * label)
        Image.fromarray(np.repeat(grey, 3, axis=2)).save(path)
    done = command(tmp_path, "heads", folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    run = tmp_path / "runs" / "edge"
    values = np.load(run / "2-features" / "values.npy")
    varying = values[:, (values != values[0]).any(axis=0)]
    constant = values.shape[1] - varying.shape[1]
    repeated = varying.shape[1] - np.unique(varying, axis=1).shape[1]
    assert min(constant, repeated) > 3
    probabilities = pd.read_parquet(run / "4-heads" / "predictions.parquet").filter(like="prob_")
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    # Brightness alone separates the classes, and the head still uses it.
    assert probabilities.filter(like="logistic").iloc[:, 0].corr(pd.Series(labels)) > 0.5
    for fault, number in (("constant columns", constant), ("duplicated columns", repeated)):
        faults(
            f"{fault} in a table of {values.shape[1]} columns",
            number,
            number,
            "nothing: a complete table of probabilities",
        )


@pytest.mark.length
def test_a_prevalence_of_one_in_a_thousand_is_accepted_with_enough_slides(tmp_path, faults):
    labels = np.zeros(8000, int)
    labels[500::1000] = 1
    slides = [f"S{row // 200}" for row in range(8000)]
    done = command(tmp_path, "heads", labelled_folder(tmp_path / "data", labels.tolist(), slides))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    probabilities = pd.read_parquet(tmp_path / "runs" / "edge" / "4-heads" / "predictions.parquet").filter(like="prob_")
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    faults("prevalence 0.1 %, positives on 8 of 40 slides", 1, 1, "nothing: a complete table of probabilities")
