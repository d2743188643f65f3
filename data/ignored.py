"""Files left in folders by operating systems and editors, which are never read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

#: Lower-case names of files left by Windows, macOS, network drives and notebooks.
LEFT_BEHIND = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "network trash folder",
        "temporary items",
        "@eadir",
        "@recycle",
        "#recycle",
        "lost+found",
        "icon\r",
        "__pycache__",
    }
)

#: Lower-case endings of the files in which Windows stores metadata of another file.
STREAMS = (":zone.identifier", ":afp_afpinfo", ":afp_resource", ":com.dropbox.attributes", ":encryptable")


def ignored(name: str) -> bool:
    """Whether a name (not a path) is hidden, or that of a file or folder left by a system or an editor."""
    # Office's lock files begin with ~$. Editors' backups end with ~, or are between two # while the file is open.
    backup = name.endswith("~") or (len(name) > 2 and name.startswith("#") and name.endswith("#"))
    # Windows metadata, such as where a file came from, becomes a separate file when it is copied to Linux.
    return name.startswith((".", "~$")) or backup or name.lower().endswith(STREAMS) or name.lower() in LEFT_BEHIND


def ignored_path(path: PurePath) -> bool:
    """Whether any part of a relative path is :func:`ignored`."""
    return any(map(ignored, path.parts))


def ignored_names(_folder: str, names: Iterable[str]) -> list[str]:
    """Return the names that are :func:`ignored`; for the argument ``ignore`` of ``shutil.copytree``."""
    return [name for name in names if ignored(name)]
