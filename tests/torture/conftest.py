"""What torture tests record: a JSON line a fault, for the table of docs/reliability.md."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.torture.bundles import small_bundle


def pytest_collection_modifyitems(items):
    """Leave what takes minutes to `make torture`."""
    if "HISTOBLEND_TORTURE" not in os.environ:
        for item in items:
            if item.get_closest_marker("length"):
                item.add_marker(pytest.mark.skip(reason="takes long: `make torture`"))


@pytest.fixture
def faults():
    """A function that records how often a fault was tried and survived, where HISTOBLEND_TORTURE names a file."""

    def record(fault: str, tried: int, survived: int, sees: str, seed: int | None = None) -> None:
        if place := os.environ.get("HISTOBLEND_TORTURE"):
            row = {"fault": fault, "tried": tried, "survived": survived, "sees": sees, "seed": seed}
            # One write of a whole line: tests that run side by side append to the same file.
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return record


@pytest.fixture
def at_length():
    """Whether `make torture` runs: faults are then tried many times, in the ordinary suite a few."""
    return "HISTOBLEND_TORTURE" in os.environ


@pytest.fixture(scope="session")
def made_bundle(tmp_path_factory):
    """A bundle of both heads, made once."""
    return small_bundle(tmp_path_factory.mktemp("bundle"), "logistic", "xgboost")


@pytest.fixture
def sound(made_bundle, tmp_path):
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(made_bundle, tmp_path / "sound"))
