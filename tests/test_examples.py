"""The notebooks in examples/ run as they are, on phantom patches in Kaggle's layout."""

import itertools
import json

import matplotlib
import pytest
from PIL import Image

from histoblend.data.phantom.patches import phantom
from tests import ROOT

NOTEBOOK = ROOT / "examples" / "patches_to_scores.ipynb"


@pytest.fixture(scope="module")
def cells():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_goes_from_patches_to_scores_and_a_plot(cells, tmp_path, monkeypatch):
    made = phantom(120, slides=10, seed=0)
    train = tmp_path / "patches" / "train"
    train.mkdir(parents=True)
    for name, pixels in zip(made.table["patch_id"], made.render(0, 120), strict=True):
        Image.fromarray(pixels).save(train / f"{name}.tif")
    table = made.table.rename(columns={"patch_id": "id", "slide": "wsi"})
    table[["id", "label"]].to_csv(train.parent / "train_labels.csv", index=False)
    table[["id", "wsi"]].to_csv(train.parent / "patch_id_wsi.csv", index=False)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {}
    exec("\n".join(cells), names)  # noqa: S102 - our own notebook
    assert names["results"]["test_score"].mean() > 0.7
    bars = names["plt"].gca().patches
    assert len(bars) == 15
    assert all(abs(low.get_width()) <= abs(high.get_width()) for low, high in itertools.pairwise(bars))
    names["plt"].close("all")


def test_the_notebook_has_fewer_than_30_lines_of_code(cells):
    assert sum(bool(line.strip()) for cell in cells for line in cell.splitlines()) < 30
