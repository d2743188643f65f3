"""Shared by all tests: small data sets on disk, and the real sample where it lies beside the checkout."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests import ROOT

# Whatever other profile is in use, no test depends on the speed of the machine.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SAMPLE = ROOT.parent / "shared" / "data" / "pcam-sample"
#: Folders with files that run whole commands, or many networks, for minutes.
LONG = ("tests/torture/", "tests/pipelines/", "tests/features/networks/")


def pytest_collection_modifyitems(items):
    """Leave long tests to `make torture`; begin with long files, so that both processes end at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if "HISTOBLEND_TORTURE" not in os.environ:
        for item in items:
            if item.get_closest_marker("length"):
                item.add_marker(pytest.mark.skip(reason="takes long: `make torture`"))


@pytest.fixture(scope="session")
def sample() -> Path:
    """The real sample in Kaggle's layout; the test is skipped where it is absent."""
    if not SAMPLE.is_dir():
        pytest.skip(f"the real sample is not at {SAMPLE.parent.name}/{SAMPLE.name}")
    return SAMPLE


@pytest.fixture
def kaggle_folder(tmp_path):
    """A function that writes a small data set in Kaggle's layout: coloured noise, half of it positive, by slide."""

    def make(n: int = 60, slides: int = 12, size: int = 96, name: str = "data") -> Path:
        folder = tmp_path / name
        (folder / "train").mkdir(parents=True)
        rng = np.random.default_rng(1)
        ids = [f"{number:04d}{'ab' * 18}" for number in range(n)]
        labels = np.arange(n) % 2
        for patch_id, label in zip(ids, labels, strict=True):
            pixels = rng.integers(90, 200, (size, size, 3), dtype=np.uint8)
            pixels[..., 1] -= 60 * np.uint8(label)
            Image.fromarray(pixels).save(folder / "train" / f"{patch_id}.tif")
        pd.DataFrame({"id": ids, "label": labels}).to_csv(folder / "train_labels.csv", index=False)
        slide = [f"S{number * slides // n}" for number in range(n)]
        pd.DataFrame({"id": ids, "wsi": slide}).to_csv(folder / "patch_id_wsi.csv", index=False)
        return folder

    return make
