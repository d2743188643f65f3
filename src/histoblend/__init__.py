"""Honest baselines for cancer detection in histology patches: features, embeddings, heads, a network and their ensemble.

In the checkout the packages are folders at its root, and this folder links to them.
"""

__version__ = "0.2.0"
