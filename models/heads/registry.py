"""Registry of heads: their classes by name or by saved files. Importing it loads no head."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.data.errors import InputError

if TYPE_CHECKING:
    from histoblend.models.heads.head import Head

#: All heads: name (the prefix of its models' names) and class. A new head needs its own file and a row here.
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
    kind: type[Head] = pkgutil.resolve_name(HEADS[name])
    return kind


def heads_on(columns: str, heads: Sequence[str]) -> list[str]:
    """Select the heads that are fitted on a set of columns; see :data:`models.names.LINEAR_ONLY`."""
    from histoblend.models.names import LINEAR_ONLY

    return [name for name in heads if columns not in LINEAR_ONLY or head_class(name).additive]


def new_head(name: str, seed: int) -> Head:
    """Make an unfitted head with default settings."""
    return head_class(name)(seed=seed)


def trusted_types() -> list[str]:
    """Histoblend's types that skops files of heads may contain. skops itself trusts built-in types and NumPy's."""
    return [kind for name in HEADS for kind in head_class(name).trusted]


def load_head(folder: Path) -> Head:
    """Load a head from the folder that its ``save`` wrote.

    Raises
    ------
    InputError
        A file is missing or damaged, or contains a type that is not trusted.
    """
    from histoblend.data.storage.arrays import files_under

    return head_from({name: (folder / name).read_bytes() for name in files_under(folder)}, str(folder))


def head_from(files: Mapping[str, bytes], where: str) -> Head:
    """Load a head from the content of its files; the file :attr:`Head.marker` identifies its class.

    Parameters
    ----------
    files : mapping from str to bytes
        Content by name, as the head's ``save`` wrote them.
    where : str
        Where the files come from, for messages.

    Raises
    ------
    InputError
        A file is missing or damaged, or contains a type that is not trusted.
    """
    classes = {kind.marker: kind for kind in map(head_class, HEADS)}
    for marker, kind in classes.items():
        if marker in files:
            return kind.load(files, where)
    listed = ", ".join(sorted(files)) or "no file"
    raise InputError(f"{where}: expected a head's {' or '.join(classes)}; got {listed}. Get the bundle again.")
