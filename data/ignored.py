"""Files that systems and editors leave behind in folders: no data, no model, never read."""

from __future__ import annotations

#: Names, in lower case, of what Windows, macOS, network drives and notebooks leave behind.
LEFT_BEHIND = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "@eadir",
        "#recycle",
        "icon\r",
        "__pycache__",
    }
)


def ignored(name: str) -> bool:
    """Whether a file or folder of that name (not path) was left by a system or an editor; hidden ones are."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND
