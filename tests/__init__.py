"""The test suite; its folders mirror the packages."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[1]
