"""Fixtures of the torture tests. Each fault is recorded as a line of JSON for the table of docs/reliability.md."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.torture.bundles import small_bundle


@pytest.fixture
def faults():
    """A function that records how often a fault was tried and survived, if HISTOBLEND_TORTURE names a file."""

    def record(fault: str, tried: int, survived: int, sees: str, seed: int | None = None) -> None:
        if records := os.environ.get("HISTOBLEND_TORTURE"):
            row = {"fault": fault, "tried": tried, "survived": survived, "sees": sees, "seed": seed}
            # A single write of the whole line, because parallel tests append to the same file.
            with Path(records).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return record


@pytest.fixture
def at_length():
    """Whether `make torture` runs. It tries each fault many times; the ordinary suite tries it a few times."""
    return "HISTOBLEND_TORTURE" in os.environ


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory):
    """A bundle with both heads, built once."""
    return small_bundle(tmp_path_factory.mktemp("bundle"), "logistic", "xgboost")


@pytest.fixture
def sound(made_bundle, tmp_path):
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(made_bundle, tmp_path / "sound"))
