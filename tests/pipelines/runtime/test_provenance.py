"""Provenance: the code digest depends on exactly the files that a result depends on."""

import pytest

from histoblend.pipelines.runtime import provenance
from histoblend.pipelines.runtime.provenance import code_digest, commit, library_versions, source_files


@pytest.fixture
def tree(tmp_path, monkeypatch):
    (tmp_path / "reports" / "templates").mkdir(parents=True)
    for name in ("steps", "runtime"):
        (tmp_path / "pipelines" / name).mkdir(parents=True)
    for name in (
        "reports/report.py",
        "reports/templates/style.css",
        "pipelines/steps/heads.py",
        "pipelines/runtime/screen.py",
    ):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["reports/report.py", "reports/templates/style.css", "pipelines/steps/heads.py"])
def test_a_changed_file_changes_the_digest(tree, name):
    before = code_digest(("reports", "pipelines/steps/heads.py"))
    (tree / name).write_text("b")
    assert code_digest(("reports", "pipelines/steps/heads.py")) != before


def test_other_files_and_caches_do_not(tree):
    before = code_digest(("reports", "pipelines/steps/heads.py"))
    (tree / "pipelines" / "runtime" / "screen.py").write_text("b")
    (tree / "reports" / "__pycache__").mkdir()
    (tree / "reports" / "__pycache__" / "page.pyc").write_text("b")
    for name in (".DS_Store", "._report.py", "Thumbs.db", "report.py~", ".ipynb_checkpoints/report-checkpoint.py"):
        (tree / "reports" / name).parent.mkdir(exist_ok=True)
        (tree / "reports" / name).write_text("b")
    assert code_digest(("reports", "pipelines/steps/heads.py")) == before


def test_a_file_can_be_left_out_of_folders_and_named_again(tree):
    sources = ("reports", "pipelines/steps/*.py", "!reports/report.py", "!pipelines/steps/heads.py")
    names = [name for name, _ in source_files(sources)]
    assert names == ["reports/templates/style.css"]
    assert [name for name, _ in source_files((*sources, "reports/report.py"))] == [*names, "reports/report.py"]


def test_versions_and_commit_are_those_of_this_checkout():
    import numpy

    assert library_versions()["numpy"] == numpy.__version__
    assert commit()
