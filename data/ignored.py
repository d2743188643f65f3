"""Files that systems and editors leave behind in folders: no data, no model, never read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

#: Names, in lower case, of what Windows, macOS, network drives and notebooks leave behind.
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

#: Ends of names, in lower case, of what Windows keeps beside a file.
STREAMS = (":zone.identifier", ":afp_afpinfo", ":afp_resource", ":com.dropbox.attributes", ":encryptable")


def ignored(name: str) -> bool:
    """Whether a file or folder of that name (not path) was left by a system or an editor; hidden ones are."""
    # Office's lock files begin with ~$, editors' backups end with ~ or, while they are open, stand between two #.
    backup = name.endswith("~") or (len(name) > 2 and name.startswith("#") and name.endswith("#"))
    # What Windows says of a file's origin is a file of its own once it is copied to Linux.
    return name.startswith((".", "~$")) or backup or name.lower().endswith(STREAMS) or name.lower() in LEFT_BEHIND


def ignored_path(path: PurePath) -> bool:
    """Whether any part of a relative path is :func:`ignored`."""
    return any(map(ignored, path.parts))


def names_ignored(_folder: str, names: Iterable[str]) -> list[str]:
    """Those of some names that are :func:`ignored`: what ``shutil.copytree`` leaves out when it is given this."""
    return [name for name in names if ignored(name)]
