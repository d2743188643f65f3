"""Check XGBoost's model files before XGBoost reads them: its own reader trusts what a file says."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from histoblend.data.errors import InputError
from histoblend.data.storage.expansion import MAX_JSON
from histoblend.models.file_checks import first_fault

_FLOAT32 = float(np.finfo(np.float32).max)

#: A non-negative integer that XGBoost writes as text.
_Count = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
_Int32 = Annotated[int, Field(ge=-1, le=2**31 - 1)]
_Float32 = Annotated[float, Field(ge=-_FLOAT32, le=_FLOAT32, allow_inf_nan=False)]
_Empty = Annotated[list[int], Field(max_length=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _TreeParameters(_Part):
    num_deleted: Literal["0"]
    num_feature: _Count
    num_nodes: _Count
    size_leaf_vector: Literal["1"]


class _Tree(_Part):
    """One tree with a number per leaf and no categories. Node 0 is the root; -1 as a child marks a leaf."""

    id: int
    tree_param: _TreeParameters
    base_weights: list[_Float32]
    loss_changes: list[_Float32]
    split_conditions: list[_Float32]
    sum_hessian: list[_Float32]
    left_children: list[_Int32]
    right_children: list[_Int32]
    parents: list[_Int32]
    split_indices: list[_Int32]
    default_left: list[Literal[0, 1]]
    split_type: list[Literal[0]]
    categories: _Empty
    categories_nodes: _Empty
    categories_segments: _Empty
    categories_sizes: _Empty

    @model_validator(mode="after")
    def _nodes_form_one_tree(self) -> _Tree:
        nodes, columns = int(self.tree_param.num_nodes), int(self.tree_param.num_feature)
        lists = [value for value in vars(self).values() if isinstance(value, list) and value]
        if not nodes or len(lists) != 10 or any(len(values) != nodes for values in lists):
            raise ValueError(f"each list of a tree must hold {nodes} nodes")
        left, right, parents = (np.array(x) for x in (self.left_children, self.right_children, self.parents))
        inner = np.flatnonzero(left != -1)
        if not np.array_equal(inner, np.flatnonzero(right != -1)):
            raise ValueError("a node must have two children or none")
        # Every node but the root is the child of one earlier node: no cycle, no index outside, no node left over.
        above, below = np.concatenate([inner, inner]), np.concatenate([left[inner], right[inner]])
        if sorted(below.tolist()) != list(range(1, nodes)) or (below <= above).any() or (parents[below] != above).any():
            raise ValueError("every node but the root must be the child of one earlier node")
        if any(not 0 <= column < max(columns, 1) for column in self.split_indices):
            raise ValueError(f"a tree must split on columns 0 to {columns - 1}")
        return self


class _Categories(_Part):
    enc: _Empty
    feature_segments: _Empty
    sorted_idx: _Empty


class _ForestParameters(_Part):
    num_parallel_tree: Literal["1"]
    num_trees: _Count


class _Forest(_Part):
    cats: _Categories
    gbtree_model_param: _ForestParameters
    iteration_indptr: list[int]
    tree_info: list[Literal[0]]
    trees: list[_Tree]

    @model_validator(mode="after")
    def _one_tree_per_round(self) -> _Forest:
        count = len(self.trees)
        listed = (int(self.gbtree_model_param.num_trees), len(self.tree_info), self.iteration_indptr)
        if listed != (count, count, [*range(count + 1)]) or [tree.id for tree in self.trees] != [*range(count)]:
            raise ValueError(f"{count} trees must be numbered, one per round")
        return self


class _Booster(_Part):
    model: _Forest
    name: Literal["gbtree"]


class _Parameters(_Part):
    base_score: Annotated[str, Field(max_length=40)]
    boost_from_average: Literal["0", "1"]
    num_class: Literal["0"]
    num_feature: _Count
    num_target: Literal["1"]

    @model_validator(mode="after")
    def _base_score_is_a_probability(self) -> _Parameters:
        if not 0 < float(self.base_score.removeprefix("[").removesuffix("]")) < 1:
            raise ValueError(f"base_score must be between 0 and 1, not {self.base_score}")
        return self


class _Objective(_Part):
    name: Literal["binary:logistic"]
    reg_loss_param: dict[Literal["scale_pos_weight"], Literal["1"]]


class _Learner(_Part):
    attributes: Annotated[dict[str, str], Field(max_length=0)]
    feature_names: _Empty
    feature_types: _Empty
    gradient_booster: _Booster
    learner_model_param: _Parameters
    objective: _Objective

    @model_validator(mode="after")
    def _trees_have_the_same_columns(self) -> _Learner:
        columns = self.learner_model_param.num_feature
        if any(tree.tree_param.num_feature != columns for tree in self.gradient_booster.model.trees):
            raise ValueError(f"every tree must be for {columns} columns")
        return self


class _Model(_Part):
    learner: _Learner
    version: tuple[int, int, int]


def checked_booster(name: str, content: bytes, columns: int | None = None) -> bytearray:
    """Check a file that ``Booster.save_model`` wrote as JSON: trees with one number per leaf, for two classes.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    content : bytes
    columns : int, optional
        Number of columns that it must have been fitted on.

    Returns
    -------
    bytearray
        The checked model, written anew: XGBoost gets what was checked, even if it parses JSON differently.

    Raises
    ------
    InputError
        The file is damaged, or a tree has a cycle, a child that does not exist, or a column that does not exist.
    """
    if len(content) > MAX_JSON:
        raise InputError(f"{name}: expected at most {MAX_JSON} bytes; got {len(content)}. Get the bundle again.")
    try:
        model = _Model.model_validate_json(content)
    except ValidationError as error:
        raise InputError(
            f"{name}: expected a booster of XGBoost; got: {first_fault(error)}. Get the bundle again."
        ) from error
    fitted_on = int(model.learner.learner_model_param.num_feature)
    if columns is not None and fitted_on != columns:
        raise InputError(f"{name}: expected a booster for {columns} columns; got {fitted_on}. Get the bundle again.")
    return bytearray(model.model_dump_json().encode())
