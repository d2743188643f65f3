"""The models that analyses predict with: those fitted on training slides, in the form of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoblend.models.bundle import Bundle, open_bundle
from histoblend.pipelines.run_files import MODEL_SET

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def models_of(run: Run) -> Bundle:
    """The models that were fitted on training slides, checked, as any bundle is."""
    return run.open("models", lambda: open_bundle(run.step("models").folder / MODEL_SET))
