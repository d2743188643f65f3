"""Jinja templates of pages, their scripts, and the hashes by which the browser accepts these."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parents[1] / "templates"
#: plotly.js with the traces for x and y axes only, a third of the size of the whole. To update it: CONTRIBUTING.md.
PLOTLY = Path(__file__).parents[1] / "vendor" / "plotly-cartesian.min.js"


def environment() -> jinja2.Environment:
    """Return the template environment: it escapes every value and refuses missing values and NaN in JSON."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return templates


def own_files(names: Iterable[str]) -> str:
    """Return the text of our scripts or styles, joined. Missing files are skipped."""
    paths = [TEMPLATES / name for name in names]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def plotly_script() -> str:
    """Return plotly.js, which draws the charts."""
    return PLOTLY.read_text(encoding="utf-8")


def parts(stem: str, suffix: str) -> list[str]:
    """Names of the script or style of a section, ``<stem>.js``, followed by its parts, ``<stem>_<part>.js``."""
    return [f"{stem}.{suffix}", *sorted(path.name for path in TEMPLATES.glob(f"{stem}_*.{suffix}"))]


def script_hash(script: str) -> str:
    """Return the hash of a script for a content security policy."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
