"""Duplicates are found in all eight orientations, after re-exposure and noise, and unrelated patches are not."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from histoblend.data.audit.duplicates import _transform_bits, exact_duplicates, near_duplicates
from histoblend.data.audit.measures import FREQUENCIES, SIGNS, cosines, describe, measure
from histoblend.data.phantom.faults import apply_symmetry
from histoblend.data.phantom.patches import phantom
from histoblend.data.splits import components


@pytest.fixture(scope="module")
def patches():
    return phantom(40, slides=4, seed=8).render(0, 40)


def described(patches):
    measured = measure(patches)
    return measured.bits, measured.vectors


def altered(patch, seed=0):
    rng = np.random.default_rng(seed)
    return np.rint(patch * 1.03 + rng.normal(0, 2, patch.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", [(96, 96), (32, 32), (50, 81)])
def test_description_equals_scipys_cosine_transform(shape):
    grey = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    vector = np.empty((FREQUENCIES, FREQUENCIES), np.int8)
    bits = describe(grey, (cosines(shape[0]), cosines(shape[1])), vector)
    expected = dctn(grey.astype(float), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    signs = (expected[:SIGNS, :SIGNS] > 0).ravel()
    signs[0] = False
    assert [bool(int(bits) >> bit & 1) for bit in range(64)] == signs.tolist()
    weighted = expected * np.hypot(*np.mgrid[:FREQUENCIES, :FREQUENCIES])
    np.testing.assert_allclose(vector, 127 * weighted / np.abs(weighted).max(), atol=0.51)


@pytest.mark.parametrize("symmetry", range(8))
def test_transforming_the_bits_equals_transforming_the_patch(patches, symmetry):
    turned = np.stack([apply_symmetry(patch, symmetry) for patch in patches])
    assert [int(_transform_bits(bits, symmetry)) for bits in described(patches)[0]] == described(turned)[0].tolist()


@pytest.mark.parametrize("symmetry", range(8))
def test_a_copy_is_found_in_every_orientation_with_its_symmetry(patches, symmetry):
    copy = apply_symmetry(altered(patches[7]), symmetry)
    pairs = near_duplicates(*described(np.concatenate([patches, copy[None]])), np.arange(len(patches) + 1))
    assert pairs.first.tolist() == [40]
    assert pairs.second.tolist() == [7]
    assert pairs.symmetry.tolist() == [symmetry]
    assert 0.97 < pairs.similarity[0] <= 1.001


def test_rows_that_are_left_out_are_not_compared(patches):
    twice = np.concatenate([patches, patches])
    pairs = near_duplicates(*described(twice), np.arange(1, 45))
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == {(40 + i, i) for i in range(1, 5)}


def test_thousands_of_copies_form_one_set_with_one_pair_each(patches):
    bits, vectors = described(patches[:2])
    bits, vectors = np.repeat(bits, 3000), np.repeat(vectors, 3000, axis=0)
    pairs = near_duplicates(bits, vectors, np.arange(6000))
    assert len(pairs.first) == 5998
    assert components(6000, pairs.first, pairs.second).tolist() == [0] * 3000 + [3000] * 3000


@pytest.mark.parametrize("value", [0, 130, 255])
def test_flat_patches_match_nothing(value):
    flat = np.full((5, 48, 48, 3), value, np.uint8)
    assert not len(near_duplicates(*described(flat), np.arange(5)).first)
    assert not len(near_duplicates(*described(flat[:0]), np.arange(0)).first)


def test_noise_matches_nothing():
    noise = np.random.default_rng(1).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    assert not len(near_duplicates(*described(noise), np.arange(500)).first)


def test_equal_hashes_point_to_the_lowest_row():
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in "abacbd"]
    assert exact_duplicates(hashes).tolist() == [0, 1, 0, 3, 1, 5]


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
@settings(max_examples=60)
def test_components_equal_those_of_a_brute_force_search(n, links):
    links = [(a % n, b % n) for a, b in links]
    near = {row: {row} for row in range(n)}
    for _ in range(n):
        for a, b in links:
            near[a] = near[b] = near[a] | near[b]
    first, second = (np.array([link[side] for link in links], dtype=int) for side in (0, 1))
    assert components(n, first, second).tolist() == [min(near[row]) for row in range(n)]
