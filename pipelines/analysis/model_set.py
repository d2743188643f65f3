"""The models that analyses predict with, fitted on training slides, and those of the bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoblend.models.bundle import Bundle, open_bundle
from histoblend.pipelines.run_files import BUNDLE, MODEL_SET

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def models_of(run: Run) -> Bundle:
    """The models fitted on training slides, opened and checked like any bundle."""
    return run.open("models", lambda: open_bundle(run.step("models").folder / MODEL_SET))


def bundle_of(run: Run) -> Bundle:
    """The bundle of a run, opened and checked."""
    return run.open("bundle", lambda: open_bundle(run.step("bundle").folder / BUNDLE))
