"""Honest baselines for cancer detection in histology patches: features, embeddings, heads, a network and their ensemble.

In the checkout, the packages are folders at the root, and this folder links to them. docs/api.md explains the names
below.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"
__all__ = ["Embeddings", "HandcraftedFeatures", "Predictor", "audit", "read_run"]

_MODULES = {
    "Embeddings": "histoblend.features.networks.embeddings",
    "HandcraftedFeatures": "histoblend.features.handcrafted.transformer",
    "Predictor": "histoblend.pipelines.predict.in_memory",
    "audit": "histoblend.data.audit.flags",
    "read_run": "histoblend.pipelines.run_tables",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, because `import histoblend` itself loads nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module 'histoblend' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
