"""How pages are made of templates, and how their scripts are named to the browser."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parents[1] / "templates"


def environment() -> jinja2.Environment:
    """Templates in which every value is escaped, a missing one is an error, and JSON holds no NaN."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return made


def own_files(names: Iterable[str]) -> str:
    """Text of those of our scripts or styles that are there, one after another."""
    paths = [TEMPLATES / name for name in names]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def script_hash(script: str) -> str:
    """Name a script as a content security policy does."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
