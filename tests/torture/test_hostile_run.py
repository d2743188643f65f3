"""A run on hostile data: ids and slides are only text, and payloads in its folder do not run."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.pipelines.commands import baseline
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import patches_of, predictions_of
from histoblend.pipelines.runtime.artefacts import file_digest
from tests import ROOT
from tests.torture.test_hostile import payloads

pytestmark = pytest.mark.torture
FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n")
#: Ids that could be read as a formula by a spreadsheet, as markup by a page, or as a new row by a CSV reader.
IDS = ["=cmd()", "+1+1", "-2", "@SUM(A1)", "\ttab", "\rreturn", "x\ry", 'q"uote', "NA", "<img src=x onerror=a>"]
IDS += ["a;=b", "＝wide"]
SLIDES = ["=HYPERLINK(1)", "@slide", "<b>bold</b>", "+S", "-S", "S6", "S7", "S8", "x;-S", "NA"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A finished baseline on data in Kaggle's layout with malicious ids and slide names."""
    root = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        (root / "data" / part).mkdir(parents=True)
    names = [*(name.replace("/", "") for name in IDS), *(f"plain{number}" for number in range(110))]
    for number, name in enumerate(names):
        pixels = rng.integers(90, 200, (48, 48, 3), dtype=np.uint8)
        pixels[..., 1] -= np.uint8(50 * (number % 2))
        Image.fromarray(pixels).save(root / "data" / "train" / f"{name}.tif")
    for name in IDS:
        Image.fromarray(rng.integers(90, 200, (48, 48, 3), dtype=np.uint8)).save(root / "data" / "test" / f"{name}.tif")
    (root / "data" / "test" / "=lost.tif").write_bytes(b"no image")
    (root / "data" / "train" / "@lost.tif").write_bytes(b"no image")
    names.append("@lost")
    with (root / "data" / "train_labels.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
            [("id", "label"), *((name, number % 2) for number, name in enumerate(names))]
        )
    with (root / "data" / "patch_id_wsi.csv").open("w", newline="") as file:
        rows = [(name, SLIDES[number // 2 % len(SLIDES)]) for number, name in enumerate(names)]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "wsi"), *rows])
    settings = [f"data.path='{root / 'data'}'", "data.size=48", "split.folds=2", "report.draws=100", "report.repeats=1"]
    settings += ["features.families=['colour']", "heads.features=['colour']", "heads.heads=['logistic']"]
    run = plan_run(load_config(ROOT / "configs" / "kaggle.toml", [*settings, "engine.workers=1"]), root / "runs")
    baseline(run)
    return run


def test_no_table_cell_starts_a_formula(hostile, faults):
    tables = sorted(hostile.folder.rglob("*.csv"))
    cells = 0
    for path in tables:
        if path.name == "submission.csv":
            continue
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) <= 1, path
        parts = [part for row in rows for cell in row for part in cell.split(";")]
        for part in (part for part in parts if part.startswith(FORMULAS)):
            assert np.isfinite(float(part)), path
        cells += sum(map(len, rows))
    assert len(tables) > 10
    assert cells > 1000
    tried = len(IDS) + len(SLIDES)
    faults(
        "an id or slide that is a formula, markup or a new row",
        tried,
        tried,
        "text; a formula starts with an apostrophe",
    )


def test_a_submission_keeps_ids_unescaped(hostile):
    with (hostile.folder / "submission.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert sorted(name for name, _ in rows[1:]) == sorted([*IDS, "=lost"])
    with (hostile.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        names = [row[0] for row in csv.reader(file)][1:]
    escaped = {name: f"'{name}" if name.startswith(FORMULAS) else name.replace(";=", ";'=") for name in IDS}
    assert sorted(names) == sorted(escaped.values())


def test_ids_and_slides_are_text_in_the_report(hostile):
    text = (hostile.folder / "7-report" / "report.html").read_text(encoding="utf-8")
    for markup in ("<img src=x", "<b>bold"):
        assert markup not in text
    # Another test opens the page in a browser and watches requests; this one checks that it links no resource.
    loaded = (
        r"""<(?:link|script|img|iframe|object|embed|source|base)\b[^>]*?\b(?:src|href|data)\s*=\s*["']?([^"'> ]*)"""
    )
    links = re.findall(loaded, text.split("<script>")[0])
    assert links
    assert [link for link in links if not link.startswith("data:")] == []


def test_payloads_in_a_run_folder_do_not_run(hostile, tmp_path, faults):
    """Files of each step are replaced by a payload, with a matching digest in the manifest."""
    touched, tried = tmp_path / "touched", 0
    from histoblend.models.heads.registry import load_head
    from histoblend.pipelines.steps.report_inputs import audit_view
    from histoblend.pipelines.tables import read_values

    folder = hostile.folder
    readers = {
        "1-patches/pixels.npy": lambda: patches_of(plan_run(hostile.config, hostile.root)),
        "1-patches/patches.parquet": lambda: patches_of(plan_run(hostile.config, hostile.root)),
        "1-patches/examples.npy": lambda: audit_view(folder / "1-patches"),
        "2-features/values.npy": lambda: read_values(folder / "2-features"),
        "4-heads/predictions.parquet": lambda: predictions_of(plan_run(hostile.config, hostile.root), "heads"),
        "4-heads/logistic_colour/head.skops": lambda: load_head(folder / "4-heads" / "logistic_colour"),
    }
    for name, read in readers.items():
        path, step = folder / name, folder / name.partition("/")[0]
        sound, manifest = path.read_bytes(), (step / "manifest.json").read_text()
        for content in payloads(touched).values():
            path.write_bytes(content)
            listed = json.loads(manifest)
            listed["files"][name.partition("/")[2]] = file_digest(path)
            (step / "manifest.json").write_text(json.dumps(listed))
            # The message does not matter: the payload must not run, and the file must not be accepted.
            with pytest.raises((InputError, ValueError, OSError)):
                read()
            assert not touched.exists(), name
            tried += 1
        path.write_bytes(sound)
        (step / "manifest.json").write_text(manifest)
    faults("a pickle in place of an artefact, with a matching digest", tried, tried, "an error; no code runs")
