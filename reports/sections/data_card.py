"""The data card: where the patches come from, what a label means, and how many there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from histoblend.data.splits import is_known

NOT_STATED = "not stated"


@dataclass(frozen=True)
class DataCard:
    """What is known about a data set besides its patches. Empty fields are not stated.

    Attributes
    ----------
    source : str
        Where the patches come from.
    tissue, stain : str
    um_per_pixel : str
        Size of a pixel in µm.
    objective : str
        Magnification of this pixel size, such as "10×".
    label : str
        What the labels mean.
    set_aside : int or None
        Number of files and patches that were left out; None if unknown.
    """

    source: str = ""
    tissue: str = ""
    stain: str = ""
    um_per_pixel: str = ""
    objective: str = ""
    label: str = ""
    set_aside: int | None = None

    @property
    def pixel_size(self) -> str:
        """Size of a pixel in words; empty if not stated."""
        if not self.um_per_pixel:
            return ""
        return f"{self.um_per_pixel} µm per pixel" + (f" ({self.objective})" if self.objective else "")

    def length(self, pixels: int) -> str:
        """A length in px, and in µm if the size of a pixel is stated as a number, such as ``96 px (93 µm)``."""
        stated = re.fullmatch(r"(about )?(\d*\.?\d+)", self.um_per_pixel)
        return f"{pixels} px" + (f" ({stated[1] or ''}{float(stated[2]) * pixels:.0f} µm)" if stated else "")


_CAMELYON = DataCard(
    tissue="sentinel lymph nodes of patients with breast cancer",
    stain="H&E",
    um_per_pixel="0.972",
    objective="10×",
    label="1 if the centre (32 × 32 pixels) contains tumour, otherwise 0",
)
#: Cards of the data sets whose content is known, by ``data.source``.
KNOWN_CARDS = {
    "kaggle": replace(
        _CAMELYON,
        source="Kaggle’s “Histopathologic Cancer Detection”: patches of PatchCamelyon, cut from CAMELYON16 slides",
    ),
    "pcam": replace(_CAMELYON, source="PatchCamelyon: patches cut from CAMELYON16 slides"),
    "wilds": DataCard(
        source="CAMELYON17-WILDS: patches cut from CAMELYON17 slides of five hospitals",
        tissue="lymph nodes of patients with breast cancer",
        stain=_CAMELYON.stain,
        label=_CAMELYON.label,
    ),
    "phantom": DataCard(
        source="synthetic phantom, drawn by this program",
        tissue="synthetic lymph node",
        stain="synthetic H&E",
        um_per_pixel="about 1",
        label=_CAMELYON.label,
    ),
}


def counts(predictions: pd.DataFrame) -> dict[str, Any]:
    """Count patches, positives, slides and slides with tumour. ``slides`` is None if no slide is known or inferred."""
    known = is_known(predictions.slide)
    inferred = not known.any() and bool(predictions.slide.notna().any())
    named = predictions[predictions.slide.notna() if inferred else known]
    tumour = named.slide[named.label == 1].nunique()
    return {
        "patches": len(predictions),
        "positives": int((predictions.label == 1).sum()),
        "slides": int(named.slide.nunique()) if len(named) else None,
        "tumour": int(tumour) if len(named) else None,
        "inferred": inferred,
    }


def count_words(predictions: pd.DataFrame) -> str:
    """Say how many patches and slides there are, and how many slides contain tumour."""
    found = counts(predictions)
    if found["slides"] is None:
        return f"{found['patches']:,} patches of unknown slides"
    kind = "inferred slides" if found["inferred"] else "slides"
    return f"{found['patches']:,} patches of {found['slides']} {kind}, {found['tumour']} of them with tumour"


def card_rows(card: DataCard, predictions: pd.DataFrame, duplicates: str) -> list[tuple[str, str]]:
    """Rows of the data card: a name and a text each. `duplicates` says how many there are."""
    found = counts(predictions)
    test = int((predictions.split == "test").sum())
    if found["slides"] is None:
        slides = "not known"
    else:
        slides = (
            f"{found['slides']}{' (inferred by stain)' if found['inferred'] else ''}, {found['tumour']} with tumour"
        )
    share = found["positives"] / max(found["patches"], 1)
    return [
        ("Source", card.source or NOT_STATED),
        ("Tissue", card.tissue or NOT_STATED),
        ("Stain", card.stain or NOT_STATED),
        ("Pixel size", card.pixel_size or NOT_STATED),
        ("Label", card.label or NOT_STATED),
        ("Patches", f"{found['patches']:,} ({found['patches'] - test:,} for training, {test:,} for the test)"),
        ("Slides", slides),
        ("Positive patches", f"{found['positives']:,} ({100 * share:.1f} %)"),
        ("Duplicates", duplicates),
        ("Set aside", _set_aside(card.set_aside)),
    ]


def card_line(card: DataCard, predictions: pd.DataFrame) -> str:
    """The data card in one line."""
    stated = [text for text in (card.tissue, card.stain, card.pixel_size) if text]
    if not stated:
        stated = [f"tissue, stain and pixel size {NOT_STATED}"]
    label = f"Label: {card.label or NOT_STATED}."
    source = f"Source: {card.source or NOT_STATED}."
    aside = f" {card.set_aside:,} files or patches were set aside." if card.set_aside else ""
    return f"{count_words(predictions)}; {', '.join(stated)}. {label} {source}{aside}"


def _set_aside(number: int | None) -> str:
    if number is None:
        return "not counted"
    return f"{number:,} files or patches; 1-patches/set_aside.csv gives the reasons" if number else "none"
