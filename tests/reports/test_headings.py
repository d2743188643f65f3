"""Headings of the page, summaries of details and titles of axes name columns and models in words."""

import json
import re
from html.parser import HTMLParser

import pytest

from histoblend.features.handcrafted.families import FAMILIES
from histoblend.models.heads.registry import HEADS
from histoblend.models.names import RUNGS, TABLES
from tests.reports.cohorts import make_inputs
from tests.reports.written_report import write_report

HEADINGS = ("h1", "h2", "h3", "h4", "summary")
#: Elements that may give the code name after the plain name.
SECOND = ("code", "small")
FAMILY = "|".join([*(family.name for family in FAMILIES), "embedding", "cnn"])
CODE = re.compile(
    rf"\b(?:{FAMILY})_\s*[\w-]+_"  # column
    rf"|\b(?:{'|'.join(HEADS)})_\w"  # model
    rf"|\b(?:{'|'.join({rung for rung in RUNGS if '-' in rung} | {'cnn', 'xgboost', 'oof'})})\b"
    rf"|\b(?:{'|'.join(table for table in TABLES if '-' in table)})\b"
)


class Headings(HTMLParser):
    """Texts of headings, without code names after other text, and JSON of figures."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.figures, self._open, self._json = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in HEADINGS:
            self.texts.append("")
            self._open = [tag]
        elif self._open and tag in SECOND and self.texts[-1].strip():
            self._open.append(tag)
        self._json = tag == "script" and dict(attrs).get("type") == "application/json"

    def handle_endtag(self, tag):
        self._json = False
        if self._open and tag == self._open[-1]:
            self._open.pop()

    def handle_data(self, data):
        if len(self._open) == 1:
            self.texts[-1] += data
        if self._json:
            self.figures.append(json.loads(data))


def titles(value):
    """Texts of all titles of axes, legends and colour bars in nested figures."""
    if isinstance(value, dict):
        title = value.get("title")
        if isinstance(title, dict) and "text" in title:
            yield title["text"]
        for part in value.values():
            yield from titles(part)
    elif isinstance(value, list):
        for part in value:
            yield from titles(part)


@pytest.mark.parametrize(
    ("text", "has_code"),
    [
        ("nuclei_area-spread_absorbed_whole", True),
        ("Values of embedding_efficientnet-lite2-0017_rgb_whole", True),
        ("XGBoost on all features (xgboost_both)", True),
        ("in-slide · logistic", True),
        ("all features of both-normalised", True),
        ("AUC, oof", True),
        ("spread of nuclear area, whole patch", False),
        ("The fine-tuned network (CNN)", False),
        ("Slides, scored by logistic regression on embeddings with slide context", False),
        ("Stain-normalised patches", False),
    ],
)
def test_code_names_are_recognised(text, has_code):
    assert bool(CODE.search(text)) == has_code


def test_a_code_name_may_only_follow_the_plain_name():
    assert Headings("<h3>nuclear area <code>nuclei_area-mean_absorbed_whole</code></h3>").texts == ["nuclear area "]
    assert Headings("<h3><code>nuclei_<wbr>area-mean</code></h3><p>a_b</p>").texts == ["nuclei_area-mean"]


def test_headings_and_titles_have_no_code_names(tmp_path):
    page = Headings(write_report(tmp_path, make_inputs(0)).read_text(encoding="utf-8"))
    shown = [*page.texts, *titles(page.figures)]
    assert len(page.texts) > 20
    assert len(shown) > len(page.texts) + 20
    assert not [text for text in shown if CODE.search(text)]
