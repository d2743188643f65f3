"""The table of heads, and what finds the class behind a name or a folder; importing it loads no head."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.data.errors import InputError

if TYPE_CHECKING:
    from histoblend.models.heads.head import Head

#: Every head: its name, which starts its models' names, and its class. A new head needs its own file and a row here.
HEADS: dict[str, str] = {
    "logistic": "histoblend.models.heads.logistic:LogisticHead",
    "xgboost": "histoblend.models.heads.boosted:XGBoostHead",
}


def head_class(name: str) -> type[Head]:
    """Class of a head.

    Parameters
    ----------
    name : str
        Row of :data:`HEADS`.

    Raises
    ------
    KeyError
        There is no such row.
    """
    found: type[Head] = pkgutil.resolve_name(HEADS[name])
    return found


def heads_on(columns: str, heads: Sequence[str]) -> list[str]:
    """Those of ``heads`` that are fitted on a set of columns; see :data:`models.names.LINEAR_ONLY`."""
    from histoblend.models.names import LINEAR_ONLY

    return [name for name in heads if columns not in LINEAR_ONLY or head_class(name).additive]


def new_head(name: str, seed: int) -> Head:
    """Make an unfitted head with its default settings."""
    return head_class(name)(seed=seed)


def trusted_types() -> list[str]:
    """Types of ours that the heads' skops files may hold; skops itself vouches for NumPy's and the built-in ones."""
    return [kind for name in HEADS for kind in head_class(name).trusted]


def load_head(folder: Path) -> Head:
    """Read a head that its ``save`` wrote into a folder.

    Raises
    ------
    InputError
        A file is missing or damaged, or holds a type that is not on the trusted list.
    """
    from histoblend.data.storage.arrays import files_under

    return head_from({name: (folder / name).read_bytes() for name in files_under(folder)}, str(folder))


def head_from(files: Mapping[str, bytes], where: str) -> Head:
    """Make a head from the content of its files; :attr:`Head.marker` among them tells its class.

    Parameters
    ----------
    files : mapping from str to bytes
        By name, as the head's ``save`` wrote them.
    where : str
        Where they come from, for messages.

    Raises
    ------
    InputError
        A file is missing or damaged, or holds a type that is not on the trusted list.
    """
    classes = {found.marker: found for found in map(head_class, HEADS)}
    for marker, found in classes.items():
        if marker in files:
            return found.load(files, where)
    listed = ", ".join(sorted(files)) or "no file"
    raise InputError(f"{where}: expected a head's {' or '.join(classes)}; got {listed}. Get the bundle again.")
