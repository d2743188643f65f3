"""The nuclei family equals slow reference implementations that use standard libraries."""

import numpy as np
import pytest

from histoblend.features.handcrafted import families
from tests.features.oracle_cases import BATCHES, assert_equals_oracle


@pytest.mark.parametrize("make", BATCHES)
def test_equals_oracle(make):
    assert_equals_oracle(make(), "nuclei")


def discs(*centres, radius=6):
    """A pale patch with dark discs of this radius at these centres, (row, column)."""
    rows, columns = np.indices((96, 96))
    patch = np.full((96, 96, 3), 235, np.uint8)
    for row, column in centres:
        patch[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = (80, 40, 130)
    return patch


def measured(patch):
    names = [column.name for column in families.columns(["nuclei"])]
    return dict(zip(names, families.compute(patch[None], ["nuclei"])[0], strict=True))


def test_a_disc_is_one_round_nucleus_with_its_area():
    values = measured(discs((48, 48), radius=8))
    assert values["nuclei_count_absorbed_whole"] == 1
    assert values["nuclei_area-mean_absorbed_whole"] == pytest.approx(np.pi * 8**2, rel=0.12)
    assert values["nuclei_eccentricity-mean_absorbed_whole"] < 0.2
    assert values["nuclei_central-gap_absorbed_whole"] == pytest.approx(np.hypot(0.5, 0.5), abs=0.1)
    assert values["nuclei_tree-mean_absorbed_whole"] == 0


def test_touching_discs_are_split():
    values = measured(discs((48, 42), (48, 54)))
    assert values["nuclei_count_absorbed_whole"] == 2
    assert values["nuclei_gap-mean_absorbed_whole"] == pytest.approx(12, abs=0.5)


def test_evenly_spread_nuclei_have_no_cell_disorder():
    even = measured(discs((24, 24), (24, 71), (71, 24), (71, 71)))
    uneven = measured(discs((20, 20), (20, 40), (40, 20), (75, 75)))
    assert even["nuclei_cell-disorder_absorbed_whole"] == pytest.approx(0, abs=0.01)
    assert uneven["nuclei_cell-disorder_absorbed_whole"] > 0.2


def test_two_nuclei_are_delaunay_neighbours():
    values = measured(discs((48, 24), (48, 71)))
    assert values["nuclei_delaunay-mean_absorbed_whole"] == pytest.approx(47, abs=0.2)
    assert values["nuclei_delaunay-spread_absorbed_whole"] == 0
    assert measured(discs((48, 48)))["nuclei_delaunay-max_absorbed_whole"] == 0


def test_graphs_of_the_corners_of_a_square():
    values = measured(discs((30, 30), (30, 66), (66, 30), (66, 66)))
    assert values["nuclei_tree-mean_absorbed_whole"] == pytest.approx(36, abs=0.2)
    # the circles of the diagonals pass through the other corners, so rounding decides whether the diagonals count
    assert values["nuclei_gabriel-degree_absorbed_whole"] in (2, 3)
    # the Delaunay graph contains only the sides, whichever diagonal a triangulation would choose
    assert values["nuclei_delaunay-mean_absorbed_whole"] == pytest.approx(36, abs=0.2)
    assert values["nuclei_delaunay-max_absorbed_whole"] == pytest.approx(36, abs=0.2)
    assert values["nuclei_crowd-mean_absorbed_whole"] == 0
    assert values["nuclei_count_absorbed_centre"] == 0
