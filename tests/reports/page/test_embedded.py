"""Which files are embedded in a page, and that their copies are exact."""

import base64
import gzip

import numpy as np
import pytest

from histoblend.reports.page import embedded
from histoblend.reports.page.embedded import embed


@pytest.fixture
def folder(tmp_path):
    """Files of random bytes, which cannot be compressed: small (90), large (200) and middle (120)."""
    rng = np.random.default_rng(0)
    for name, size in (("small", 90), ("large", 200), ("middle", 120)):
        (tmp_path / f"{name}.csv").write_bytes(rng.bytes(size))
    return tmp_path


NAMES = ["large.csv", "middle.csv", "small.csv"]


def test_copies_are_exact_and_in_the_order_of_the_names(folder):
    copies = embed(folder, NAMES)
    assert list(copies) == NAMES
    for name, copy in copies.items():
        assert gzip.decompress(base64.b64decode(copy)) == (folder / name).read_bytes()
    assert embed(folder, NAMES) == copies


def test_large_files_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(embedded, "LARGEST", 120)
    assert list(embed(folder, NAMES)) == ["middle.csv", "small.csv"]


def test_the_smallest_files_come_first_until_the_page_is_full(folder, monkeypatch):
    # 90 random bytes become at most 120 of gzip (18 bytes of header and 5 per block) and 160 in Base64.
    monkeypatch.setattr(embedded, "TOTAL", 200)
    assert list(embed(folder, NAMES)) == ["small.csv"]


def test_a_missing_file_is_an_error(folder):
    with pytest.raises(FileNotFoundError):
        embed(folder, ["gone.csv"])
