"""Views of a patch: the symmetries of the square, and resized patches."""

import numpy as np

from histoblend.features.networks.views import resize, symmetries


def test_symmetries_are_the_eight_of_the_square():
    patch = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1).repeat(3, axis=3)
    views = {view[0, :, :, 0].tobytes() for view in symmetries(patch)}
    assert len(views) == 8
    by_hand = {
        bytes([6, 3, 0, 7, 4, 1, 8, 5, 2]),
        bytes([0, 3, 6, 1, 4, 7, 2, 5, 8]),
        bytes([8, 7, 6, 5, 4, 3, 2, 1, 0]),
    }
    assert by_hand < views  # a quarter turn, the transpose, a half turn


def test_resizing_keeps_flat_colours_and_sizes_and_the_callers_array():
    patches = np.full((2, 96, 80, 3), (10, 128, 255), np.uint8)
    before = patches.copy()
    for size in (128, 192, 224, 48):
        resized = resize(patches, size)
        assert resized.shape == (2, size, size, 3)
        assert (resized == (10, 128, 255)).all()
    np.testing.assert_array_equal(patches, before)
    assert resize(patches, None) is patches


def test_resizing_equals_values_calculated_by_hand():
    """Doubling a step 0 | 240: Keys' weights at a quarter pixel are (-9, 111, 29, -3) / 128."""
    row = np.repeat(np.uint8([0, 240]), 4)
    resized = resize(np.broadcast_to(row[None, None, :, None], (1, 8, 8, 3)).copy(), 16)[0, 8, :, 0]
    beside = round(240 * (29 - 3) / 128), round(240 * (111 - 9) / 128)
    assert resized[7:9].tolist() == list(beside)
    assert resized[6] == 0  # undershoot, clipped to 0
    assert resized[10] >= 240
