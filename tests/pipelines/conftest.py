"""Shared by tests of whole runs."""

import pytest

from histoblend.pipelines import comparison
from histoblend.pipelines.steps import figures
from histoblend.reports.page.static_figures import write_static_figures


def write_few(folder, sections, **options):
    return write_static_figures(folder, [section for section in sections if section.charts][:1], **options)


@pytest.fixture(scope="session", autouse=True)
def few_charts():
    """Draw only one section's charts as files. Drawing all would take longer than the rest of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (comparison, figures):
            patch.setattr(module, "write_static_figures", write_few)
        yield
