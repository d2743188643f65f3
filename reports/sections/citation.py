"""How to cite a report: the software with its version and commit, the data and the reporting guideline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from histoblend import __version__

_PATCHES = (
    "Veeling BS, Linmans J, Winkens J, Cohen T, Welling M. Rotation equivariant CNNs for digital pathology. MICCAI "
    "2018, LNCS 11071:210–218. doi:10.1007/978-3-030-00934-2_24",
    "Ehteshami Bejnordi B, Veta M, van Diest PJ, et al. Diagnostic assessment of deep learning algorithms for "
    "detection of lymph node metastases in women with breast cancer. JAMA 2017;318(22):2199–2210. "
    "doi:10.1001/jama.2017.14585",
)
#: What to cite for the patches, by ``data.source``: an introduction and references.
_DATA: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pcam": ("The patches (PatchCamelyon) and the slides that they come from (CAMELYON16):", _PATCHES),
    "kaggle": (
        "If the patches are those of Kaggle’s “Histopathologic Cancer Detection”, which come from PatchCamelyon and "
        "CAMELYON16:",
        _PATCHES,
    ),
    "wilds": (
        "The patches (CAMELYON17-WILDS) and the slides that they come from (CAMELYON17):",
        (
            "Koh PW, Sagawa S, Marklund H, et al. WILDS: a benchmark of in-the-wild distribution shifts. ICML 2021, "
            "PMLR 139:5637–5664.",
            "Bándi P, Geessink O, Manson Q, et al. From detection of individual metastases to classification of lymph "
            "node status at the patient level: the CAMELYON17 challenge. IEEE Trans Med Imaging 2019;38(2):550–560. "
            "doi:10.1109/TMI.2018.2867350",
        ),
    ),
    "phantom": ("The patches are synthetic and made by Histoblend, so there are no data to cite.", ()),
}
_OTHER_DATA = ("The source of the images, which Histoblend does not know.", ())
_SOFTWARE = "Histoblend contributors. Histoblend: honest baselines for cancer detection in histology patches."
_GUIDELINE = (
    "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement: updated guidance for reporting clinical prediction "
    "models that use regression or machine learning methods. BMJ 2024;385:e078378. doi:10.1136/bmj-2023-078378"
)


def citation(facts: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Say what to cite, as pairs of an introduction and references.

    Parameters
    ----------
    facts : mapping
        How the report was made: ``configuration``, with ``data.source``, and ``steps``, each with its ``commit`` and
        the time at which it was ``made``. All may be missing.
    """
    first: Mapping[str, Any] = next(iter(facts.get("steps", {}).values()), {})
    commit, made = str(first.get("commit") or ""), str(first.get("made") or "")
    version = f"Version {__version__}" + (f", commit {commit}" if commit else "")
    year = f" {made[:4]}." if made[:4].isdigit() else ""
    software = f"{_SOFTWARE} {version}.{year}"
    source = str(facts.get("configuration", {}).get("data", {}).get("source", ""))
    return [
        ("The software:", (software,)),
        _DATA.get(source, _OTHER_DATA),
        ("The reporting guideline, if you use the checklist below:", (_GUIDELINE,)),
    ]
