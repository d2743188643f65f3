"""How it was made: the checklist follows from what sections hold, digests are all there, and the card reads."""

import re
from html import unescape

import pandas as pd
import pytest

from histoblend.reports.page.page import write_page
from histoblend.reports.page.section import Section
from histoblend.reports.sections.provenance import card_html, made_section
from histoblend.reports.sections.tripod import COVERED, IN_PART, ITEMS, MISSING, checklist
from tests.reports.cohorts import make_inputs
from tests.reports.test_report import NASTY
from tests.reports.written_report import write_report

CARD = f"""# Model card: made up

Made today. **Not for diagnosis**, see `make predict` {NASTY}
and on.

## Scores

| model | AUC |
|---|---|
| a_b | 0.9 |

- one
- two `x`

Then:

    make predict BUNDLE=here
"""


def status(sections, number, **held):
    table = checklist(sections, held=held).set_index("number")
    return table.status[number]


def test_there_are_27_items_and_none_is_named_twice():
    assert [item.number for item in ITEMS] == list(range(1, 28))
    assert len({item.topic for item in ITEMS}) == 27
    known = {"verdict", "ladder", "data", "importances", "stain", "errors", "cnn", "decisions", "ensemble", "made"}
    assert {name.partition("/")[0] for item in ITEMS for name in item.shown} <= known


def test_calibration_is_covered_only_by_a_section_with_content():
    table = pd.DataFrame({"x": [1]})
    full = Section("decisions", "D", {}, tables={"operating-points": table})
    assert status([full], 15) == COVERED
    assert status([Section("decisions", "D", None, tables={"operating-points": table})], 15) == MISSING
    assert status([Section("decisions", "D", {}, tables={"operating-points": table.iloc[:0]})], 15) == MISSING
    assert status([], 15) == MISSING


def test_what_only_an_author_knows_is_never_covered():
    every = [Section(name, name, {}) for name in ("verdict", "ladder", "data", "stain", "errors", "made")]
    table = checklist(every).set_index("number")
    assert table.status[17] == MISSING  # ethics
    assert table.status[5] == IN_PART  # where the slides come from
    assert (table["add"][table.status != COVERED] != "").all()
    assert table.sections[5] == "data"


def test_an_item_whose_sections_are_there_in_part_says_which_is_missing():
    table = checklist([Section("ladder", "L", {})]).set_index("number")
    assert table.status[21] == IN_PART
    assert table["add"][21] == "Not in this report: data."


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    inputs = make_inputs(
        1, slides=8, test_slides=4, per_slide=20, rungs=("prevalence", "colour"),
        artefacts={"1-patches": {"pixels.npy": "a" * 64, NASTY: "b" * 64}, "4-heads": {"costs.csv": "c" * 64}},
        card=CARD,
    )  # fmt: skip
    return write_report(tmp_path_factory.mktemp("made"), inputs)


def test_links_of_the_checklist_lead_to_sections_with_content(page):
    text = page.read_text(encoding="utf-8")
    table = text[text.index('id="tripod-table"') :]
    table = table[: table.index("</table>")]
    anchors = set(re.findall(r'href="#(\w+)"', table))
    assert {"data", "ladder", "made"} <= anchors
    assert "decisions" not in anchors  # nothing was decided in this run
    assert all(f'<section id="{anchor}" ' in text for anchor in anchors)
    tripod = pd.read_csv(page.parent / "tripod.csv")
    assert table.count("<tr>") == 27 + 1 == len(tripod) + 1
    assert f"covers {(tripod.status == COVERED).sum()} and {(tripod.status == IN_PART).sum()} in part" in text


def test_every_digest_is_on_the_page_and_beside_it(page):
    table = pd.read_csv(page.parent / "artefacts.csv")
    assert table.sha256.tolist() == ["a" * 64, "b" * 64, "c" * 64]
    text = page.read_text(encoding="utf-8")
    assert all(digest in text for digest in table.sha256)
    assert "3 files in 2 folders" in text
    assert "digests of all 3 files of the run" in text[text.index('id="made"') :]
    assert NASTY not in text


def test_headings_tables_lists_and_code_of_the_card_become_html():
    html = card_html(CARD)
    assert "<h4>" in html
    assert '<th scope="col">AUC</th>' in html
    assert "<td>a_b</td>" in html
    assert "<li>two <code>x</code></li>" in html
    assert '<pre class="scroll" tabindex="0"><code>make predict BUNDLE=here\n</code></pre>' in html
    assert card_html("") == ""


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "![x](http://a/b.png)", "[x](http://a)", "<http://a>"])
def test_markup_in_names_stays_text(text):
    html = card_html(f"# Title\n\nslide {text}\n")
    assert not re.search("<(script|img|a)\\b", html)
    assert text in unescape(html)


def test_the_card_is_on_the_page(page):
    text = page.read_text(encoding="utf-8")
    card = text[text.index('<details id="card">') :]
    assert "<strong>Not for diagnosis</strong>" in card
    assert "<code>make predict</code>" in card
    assert "Model card: made up" not in card  # the summary says it


def test_without_facts_the_section_says_so(tmp_path):
    text = write_page(tmp_path, "x", [made_section({})]).read_text(encoding="utf-8")
    assert "Nothing was recorded." in text
    assert 'id="tripod-table"' not in text
