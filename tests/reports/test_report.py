import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from histoblend.models.inspection.stain import StainGroups, StainView, group_slides, group_table
from histoblend.reports.page.page import write_page
from histoblend.reports.page.section import Section
from histoblend.reports.sections.provenance import _fact_tables
from histoblend.reports.words import FAMILY_WORDS
from tests.reports.cohorts import make_inputs
from tests.reports.written_report import write_report

NASTY = "<b>x</b><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._kind = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        kind = dict(attrs).get("type", "script") + dict(attrs).get("id", "")
        self._kind = kind if tag == "script" else None

    def handle_data(self, data):
        if self._kind:
            self.scripts.append((self._kind, data))

    def handle_endtag(self, tag):
        self._kind = None


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    inputs = make_inputs(0)
    text = write_report(folder, inputs).read_text(encoding="utf-8")
    return folder, inputs, text, Page(text)


def test_report_is_one_file_that_loads_nothing(report):
    folder, _, text, page = report
    assert (folder / "report.html").stat().st_size < 15e6
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert "@import" not in text
    assert "url(" not in text[: text.index("</style>")]


def test_report_allows_only_its_own_scripts(report):
    _, _, _, page = report
    policy = next(item["content"] for _, item in page.elements if item.get("http-equiv") == "Content-Security-Policy")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    code = [text for kind, text in page.scripts if kind == "script"]
    assert allowed == [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert policy.startswith("default-src 'none'")
    assert "connect-src" not in policy
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_report_figures_are_valid_plotly(report):
    _, _, _, page = report
    names = [item["data-figure"] for tag, item in page.elements if tag == "figure" and "data-figure" in item]
    texts = [text for kind, text in page.scripts if kind == "application/json"]
    figures = dict(zip(names, map(json.loads, texts), strict=True))
    assert {name: len(figures[name]) for name in ("forest", "roc", "slides", "groups", "families")} == {
        "forest": 5,
        "roc": 2,
        "slides": 12,
        "groups": 10,  # one variant per model
        "families": 10,
    }
    for variants in figures.values():
        for variant in variants:
            go.Figure({key: value for key, value in variant.items() if key in ("data", "layout")})


def test_report_writes_its_numbers_as_csv(report):
    folder, inputs, _, _ = report
    assert pd.read_csv(folder / "ladder.csv").auc.tolist() == pytest.approx(inputs.ladder.auc.tolist())
    slides = pd.read_csv(folder / "slides.csv")
    row = slides[(slides.model == "xgboost_both") & slides.auc.notna()].iloc[0]
    part = inputs.predictions[inputs.predictions.slide == row.slide]
    assert row.auc == pytest.approx(roc_auc_score(part.label, part.prob_xgboost_both))
    assert json.loads((folder / "facts.json").read_text())["config"]["data"]["source"] == "made-up"
    assert set(pd.read_csv(folder / "families.csv").measure) == {"gain", "coefficient", "permutation"}
    assert len(pd.read_csv(folder / "importances.csv")) == len(inputs.importances)


def test_report_shows_the_right_patches(report):
    folder, inputs, _, page = report
    shown = pd.read_csv(folder / "patches-shown.csv")
    images = [item for tag, item in page.elements if tag == "img"]
    assert len(images) == len(shown) > 32
    rows = inputs.patches.table.reset_index().set_index("patch_id")["index"]
    for image, patch_id in zip(images, shown.patch_id, strict=True):
        others = inputs.patches.pixels[[row for row in rows.iloc[:5] if row != rows[patch_id]]].astype(int)
        encoded = image["src"].removeprefix("data:image/jpeg;base64,")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
        # Nearly equal: JPEG without colour subsampling.
        difference = np.abs(pixels.astype(int) - inputs.patches.pixels[rows[patch_id]])
        assert difference.mean() < 5
        assert all(difference.mean() < np.abs(pixels.astype(int) - other).mean() / 2 for other in others)
        assert patch_id in image["alt"]
    boxes = [item["style"] for tag, item in page.elements if item.get("class") == "box"]
    assert set(boxes) == {f"inset:{100 / 3}% {100 / 3}%"}  # 32 of 96 pixels in the middle


def test_tables_of_sections_must_have_unique_names(tmp_path):
    sections = [Section(name, name, None, tables={"slides": pd.DataFrame()}) for name in ("errors", "stain")]
    with pytest.raises(ValueError, match="names of a page's tables must be unique"):
        write_page(tmp_path, "x", sections)


def test_report_refuses_predictions_of_unknown_patches(tmp_path):
    inputs = make_inputs(0, rungs=("prevalence", "both"))
    other = replace(inputs.patches, table=inputs.patches.table.assign(patch_id="x"))
    with pytest.raises(ValueError, match="every predicted patch must be among the patches"):
        write_report(tmp_path, replace(inputs, patches=other))


def test_report_escapes_all_text_from_data(tmp_path):
    inputs = nasty_inputs()
    text = write_report(tmp_path, inputs).read_text(encoding="utf-8")
    page = Page(text)
    assert NASTY not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert not any("onerror" in attributes for _, attributes in page.elements)
    kinds = [kind for kind, _ in page.scripts]
    assert sum(tag == "script" for tag, _ in page.elements) == len(kinds)
    assert kinds.count("script") == 2
    for kind, content in page.scripts:
        if kind.startswith("application/json"):
            json.loads(content)


def nasty_inputs():
    """Inputs in which every text that comes from data tries to be markup."""
    inputs = make_inputs(2, slides=8, test_slides=3, per_slide=20, rungs=("prevalence", "colour", "both"))
    predictions = inputs.predictions.copy()
    ids = {old: f"{NASTY}</script>{i}" for i, old in enumerate(predictions.patch_id)}
    names = {old: f"{NASTY}</script>{old}" for old in predictions.slide.unique()}
    tables = [
        table.assign(patch_id=table.patch_id.map(ids), slide=table.slide.map(names))
        for table in (predictions, inputs.patches.table)
    ]
    importances = inputs.importances.assign(family=lambda table: table.family + NASTY)
    groups = replace(inputs.groups, groups=inputs.groups.groups.assign(group=lambda table: table.group + NASTY))
    return replace(
        inputs,
        title=NASTY,
        predictions=tables[0],
        patches=replace(inputs.patches, table=tables[1]),
        importances=importances,
        groups=groups,
        warnings=(NASTY,),
        facts={NASTY: {NASTY: NASTY}, "steps": {NASTY: {"seconds": 1.5}}, "list": [NASTY]},
        sentences=dict.fromkeys(inputs.sentences, NASTY),
    )


def test_single_families_have_a_separate_table(tmp_path):
    inputs = make_inputs(4, slides=8, test_slides=0, per_slide=20, rungs=("prevalence", "colour", "lbp", "nuclei"))
    inputs = replace(inputs, families={"colour": (132, 0.4), "lbp": (128, 0.75), "nuclei": (106, 0.55)})
    text = write_report(tmp_path, inputs).read_text(encoding="utf-8")
    ladder_table = text[text.index('id="ladder-table"') : text.index("</table>", text.index('id="ladder-table"'))]
    alone = text[text.index('id="alone-table"') : text.index("</table>", text.index('id="alone-table"'))]
    assert "nuclei" not in ladder_table
    rows = re.findall(r'<th scope="row">([\w ]+)</th><td class="n" data-value="(\d+)">', alone)
    assert sorted(rows) == [("colour", "132"), ("local binary patterns", "128"), ("nuclei", "106")]
    best = inputs.ladder[inputs.ladder.rung.isin(["colour", "lbp", "nuclei"])].groupby("rung").auc.max()
    assert [family for family, _ in rows] == best.sort_values(ascending=False).index.map(FAMILY_WORDS).tolist()
    assert f'data-value="{best["nuclei"]}"' in alone
    # single families appear in neither the curves nor the verdict
    assert not pd.read_csv(tmp_path / "roc.csv").model.str.contains("nuclei").any()


def test_stain_that_is_associated_with_the_label_is_reported(tmp_path):
    inputs = make_inputs(5, slides=8, test_slides=3, per_slide=20, rungs=("prevalence", "colour"))
    names = sorted(inputs.predictions.slide.unique())
    slides = pd.DataFrame({"slide": names, "group": ["A"] * 5 + ["B"] * 6, "prevalence": 0.5, "patches": 20})
    groups, models = StainGroups(slides, 0.6, 0.0001), ["logistic_colour", "xgboost_colour"]
    scores = group_table(groups, inputs.predictions, models, draws=100)
    view = StainView(groups, scores, group_slides(groups, inputs.predictions, models))
    text = write_report(tmp_path, replace(inputs, stain=view)).read_text(encoding="utf-8")
    assert text.count("Stain and label are confounded.") == 1  # in its section
    assert "<summary>Stain and label are confounded</summary>" in text  # in the verdict
    assert "Stains were not shifted in this run." in text
    table = pd.read_csv(tmp_path / "stain-groups.csv")
    assert set(table.model) == set(models)
    groups = table[table.model == "logistic_colour"].set_index("group")
    assert groups.slides.tolist() == [5, 6]
    part = inputs.predictions[inputs.predictions.slide.isin(names[:5])]
    assert groups.patches["A"] == len(part)
    assert groups.prevalence["A"] == pytest.approx(part.label.mean())


def test_report_says_what_is_missing(tmp_path):
    inputs = make_inputs(3, slide_map=False, test_slides=0, rungs=("prevalence", "colour"), facts={})
    inputs = replace(inputs, importances=inputs.importances.iloc[:0], warnings=(), phantom=True)
    text = write_report(tmp_path, inputs).read_text(encoding="utf-8")
    assert "Every score here is optimistic" in text
    assert "say nothing about medicine" in text
    assert "No importances were computed" in text
    assert "No slide is known" in text
    assert "They need the “stain” family of features and at least 8 slides." in text
    assert "alone-table" not in text
    assert "Nothing was recorded" in text


def test_report_is_reproducible(tmp_path):
    inputs = make_inputs(4, slides=8, per_slide=20, rungs=("prevalence", "colour"))
    first = write_report(tmp_path / "a", inputs).read_bytes()
    assert write_report(tmp_path / "b", inputs).read_bytes() == first


def test_facts_shared_by_steps_are_listed_once():
    steps = {
        "1-patches": {"rows": 5, "libraries": {"numpy": "2"}},
        "2-features": {"rows": 7, "libraries": {"numpy": "2"}},
    }
    assert _fact_tables({"commit": "abc", "steps": steps}) == [
        ("run", [("commit", "abc")]),
        ("all steps", [("libraries.numpy", "2")]),
        ("1-patches", [("rows", "5")]),
        ("2-features", [("rows", "7")]),
    ]
