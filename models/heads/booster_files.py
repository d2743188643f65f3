"""XGBoost's model files: read and checked here before XGBoost, whose own reader trusts what a file says, sees them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from histoblend.data.errors import InputError

#: Numbers and arrays of them, by the marker in the file: big-endian.
_NUMBERS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_WORDS = {"T": True, "F": False, "Z": None}
#: Objects and arrays within each other; a booster of ours has seven.
_DEPTH = 16

# What a model of ours consists of. What is empty in ours must be: categories, names, leaves of several numbers.
_LEARNER: dict[str, Any] = {
    "attributes": {},
    "feature_names": [],
    "feature_types": [],
    "gradient_booster": {},
    "learner_model_param": {"num_class": "0", "num_target": "1"},
    "objective": {"name": "binary:logistic"},
}
_MODEL = ("cats", "gbtree_model_param", "iteration_indptr", "tree_info", "trees")
_CATEGORIES = ("enc", "feature_segments", "sorted_idx")
_TREE = {"num_deleted": "0", "size_leaf_vector": "1"}
_FINITE = ("base_weights", "loss_changes", "split_conditions", "sum_hessian")
_ARRAYS = {
    **dict.fromkeys(_FINITE, ">f4"),
    **dict.fromkeys(("left_children", "right_children", "parents", "split_indices"), ">i4"),
    **dict.fromkeys(("default_left", "split_type"), "|u1"),
}
_EMPTY = ("categories", "categories_nodes", "categories_segments", "categories_sizes")


class _Reader:
    """Universal Binary JSON, as XGBoost writes it.

    References
    ----------
    https://ubjson.org, draft 12.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.content) - self.place:
            raise ValueError(f"{count} bytes wanted at byte {self.place} of {len(self.content)}")
        self.place += count
        return self.content[self.place - count : self.place]

    def mark(self) -> str:
        return self.take(1).decode("ascii")

    def number(self, kind: str) -> Any:
        if kind not in _NUMBERS:
            raise ValueError(f"{kind!r} for a number at byte {self.place}")
        form = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.take(form.itemsize), form)[0].item()

    def length(self) -> int:
        """How long what follows is: XGBoost writes 64 bits always, and expects them."""
        if (kind := self.mark()) != "L":
            raise ValueError(f"{kind!r} for a length at byte {self.place}")
        return int(self.number("L"))

    def text(self) -> str:
        return self.take(self.length()).decode("utf-8")

    def value(self, depth: int = 0) -> Any:
        kind = self.mark()
        if depth > _DEPTH:
            raise ValueError(f"more than {_DEPTH} levels")
        if kind == "{":
            return self.members(depth)
        if kind == "[":
            return self.values(depth)
        if kind == "S":
            return self.text()
        return _WORDS[kind] if kind in _WORDS else self.number(kind)

    def members(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.content[self.place : self.place + 1] != b"}":
            name = self.text()
            if name in found:
                raise ValueError(f"{name!r} twice")
            found[name] = self.value(depth + 1)
        self.place += 1
        return found

    def values(self, depth: int) -> Any:
        kind = self.mark()
        if kind == "$":
            form = self.mark()
            if form not in _NUMBERS or self.mark() != "#":
                raise ValueError(f"an array of {form!r} at byte {self.place}")
            count, each = self.length(), np.dtype(_NUMBERS[form])
            return np.frombuffer(self.take(count * each.itemsize), each)
        if kind == "#":
            count = self.length()
            if not 0 <= count <= len(self.content) - self.place:
                raise ValueError(f"{count} values at byte {self.place} of {len(self.content)}")
            return [self.value(depth + 1) for _ in range(count)]
        raise ValueError(f"an array without a length at byte {self.place}")


def check_booster(name: str, content: bytes, columns: int | None = None) -> None:
    """Check a file as ``Booster.save_model`` writes ours: trees of one number a leaf, for two classes.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    content : bytes
    columns : int, optional
        How many columns it must have been fitted on.

    Raises
    ------
    InputError
        It is damaged, or a tree leads out of itself, in circles or to a column that there is not.
    """
    try:
        reader = _Reader(content)
        model = reader.value()
        if reader.place != len(content):
            raise ValueError("more after the end")
        _check_model(model)
        found = _count(model["learner"]["learner_model_param"]["num_feature"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{name}: expected a booster of XGBoost's; got: {type(error).__name__}: {error}. Get the bundle again."
        ) from error
    if columns is not None and found != columns:
        raise InputError(f"{name}: expected a booster for {columns} columns; got {found}. Get the bundle again.")


def _check_model(model: Any) -> None:
    learner, version = model["learner"], model["version"]
    booster, columns = learner["gradient_booster"], _count(learner["learner_model_param"]["num_feature"])
    inner = booster["model"]
    trees, rounds = inner["trees"], [*map(_count, inner["iteration_indptr"])]
    _same("parts", {*model, *learner}, {"learner", "version", *_LEARNER})
    _same("parts of the trees", {*booster, *inner}, {"model", "name", *_MODEL})
    _same("version", [type(part) for part in version], [int] * 3)
    for name, value in _LEARNER.items():
        if isinstance(value, dict):
            _same(name, {**learner[name], **value}, learner[name])
            _same(f"kinds of {name}", {type(one) for one in learner[name].values()} - {str, dict}, set())
        else:
            _same(name, learner[name], value)
    score = [float(part) for part in learner["learner_model_param"]["base_score"].strip("[]").split(",")]
    _same("base_score", [math.isfinite(part) and 0 < part < 1 for part in score], [True])
    _same("kind", booster["name"], "gbtree")
    _same("sizes", [len(inner["cats"][name]) for name in _CATEGORIES], [0] * len(_CATEGORIES))
    _same("number of trees", _count(inner["gbtree_model_param"]["num_trees"]), len(trees))
    _same("trees a round", inner["gbtree_model_param"]["num_parallel_tree"], "1")
    _same("classes", [*map(_count, inner["tree_info"])], [0] * len(trees))
    _same("rounds", rounds, list(range(len(trees) + 1)))
    for number, tree in enumerate(trees):
        _same("number", tree["id"], number)
        _check_tree(tree, columns)


def _check_tree(tree: dict[str, Any], columns: int) -> None:
    nodes = _count(tree["tree_param"]["num_nodes"])
    _same("parts of a tree", set(tree), {"id", "tree_param", *_ARRAYS, *_EMPTY})
    _same(
        "kind of tree", {**tree["tree_param"], "num_nodes": ""}, {**_TREE, "num_feature": str(columns), "num_nodes": ""}
    )
    for name, form in _ARRAYS.items():
        _same(name, (tree[name].dtype.str, len(tree[name])), (form, nodes))
    for name in _EMPTY:
        _same(name, len(tree[name]), 0)
    left, right, column = tree["left_children"], tree["right_children"], tree["split_indices"]
    inner = np.flatnonzero(left != -1)
    _same("leaves", np.flatnonzero(right != -1).tolist(), inner.tolist())
    # Every node but the root is the child of one that comes before it: no circle, nothing outside, nothing left over.
    parents = np.concatenate([inner, inner])
    children = np.concatenate([left[inner], right[inner]])
    _same("children", sorted(children.tolist()), list(range(1, nodes)))
    _same("order", bool((children > parents).all()), True)
    _same("parents", tree["parents"][children].tolist(), parents.tolist())
    _same("columns", bool(((column >= 0) & (column < max(columns, 1))).all()), True)
    _same("kinds of splits", bool(tree["split_type"].any() or (tree["default_left"] > 1).any()), False)
    _same("numbers", bool(np.isfinite([tree[name] for name in _FINITE]).all()), True)


def _count(value: Any) -> int:
    """A number that XGBoost writes as one, or as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < 10**9:
        return int(value)
    raise ValueError(f"{str(value)[:40]!r} for a count")


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"{what} of another kind ({str(found)[:80]})")
