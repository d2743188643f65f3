"""What a report tells its reader to cite."""

import pytest

from histoblend import __version__
from histoblend.reports.sections.citation import citation

STEPS = {"1-patches": {"commit": "0123abc", "made": "2026-11-26T21:47:36Z"}}


def test_software_is_cited_with_version_commit_and_year():
    words, (reference,) = citation({"steps": STEPS})[0]
    assert words == "The software:"
    assert reference.endswith(f"Version {__version__}, commit 0123abc. 2026.")
    assert citation({})[0][1][0].endswith(f"Version {__version__}.")


@pytest.mark.parametrize(
    ("source", "count", "words"),
    [
        ("pcam", 2, "PatchCamelyon"),
        ("kaggle", 2, "If the patches are those of Kaggle’s"),
        ("phantom", 0, "synthetic"),
        ("folder", 0, "source of the images"),
    ],
)
def test_data_are_cited_by_their_source(source, count, words):
    introduction, references = citation({"configuration": {"data": {"source": source}}})[1]
    assert words in introduction
    assert len(references) == count
