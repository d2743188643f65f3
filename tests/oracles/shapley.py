"""Slow reference Shapley values, from all subsets of features and all paths of a tree."""

from itertools import combinations
from math import factorial

import numpy as np


def tree_shapley(nodes, row, features):
    """Shapley values of one tree (rows of `trees_to_dataframe`) for one row, by definition.

    At a split on a feature outside the subset, the values of both branches are averaged, weighted by their cover.
    """
    by_id = nodes.set_index("ID")

    def expected(name, subset):
        node = by_id.loc[name]
        if node["Feature"] == "Leaf":
            return node["Gain"]
        feature = int(node["Feature"][1:])
        if feature in subset:
            return expected(node["Yes"] if np.float32(row[feature]) < np.float32(node["Split"]) else node["No"], subset)
        branches = [(by_id.loc[node[side]]["Cover"], expected(node[side], subset)) for side in ("Yes", "No")]
        return sum(cover * value for cover, value in branches) / sum(cover for cover, _ in branches)

    root = nodes[nodes["Node"] == 0]["ID"].iloc[0]
    values = np.zeros(features)
    for feature in range(features):
        others = [other for other in range(features) if other != feature]
        for size in range(features):
            weight = factorial(size) * factorial(features - size - 1) / factorial(features)
            for subset in combinations(others, size):
                values[feature] += weight * (expected(root, {*subset, feature}) - expected(root, set(subset)))
    return values
