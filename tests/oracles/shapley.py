"""Shapley values the slow way: every subset of features, every path of every tree."""

from itertools import combinations
from math import factorial

import numpy as np


def tree_shapley(nodes, row, features):
    """Shapley values of one tree (rows of `trees_to_dataframe`) for one row, by their definition.

    A feature that is not in the subset sends the row both ways, each weighted by the cover of the branch.
    """
    by_id = nodes.set_index("ID")

    def expected(name, subset):
        node = by_id.loc[name]
        if node["Feature"] == "Leaf":
            return node["Gain"]
        place = int(node["Feature"][1:])
        if place in subset:
            return expected(node["Yes"] if np.float32(row[place]) < np.float32(node["Split"]) else node["No"], subset)
        parts = [(by_id.loc[node[side]]["Cover"], expected(node[side], subset)) for side in ("Yes", "No")]
        return sum(cover * value for cover, value in parts) / sum(cover for cover, _ in parts)

    root = nodes[nodes["Node"] == 0]["ID"].iloc[0]
    values = np.zeros(features)
    for place in range(features):
        others = [other for other in range(features) if other != place]
        for size in range(features):
            weight = factorial(size) * factorial(features - size - 1) / factorial(features)
            for subset in combinations(others, size):
                values[place] += weight * (expected(root, {*subset, place}) - expected(root, set(subset)))
    return values
