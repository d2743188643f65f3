"""Tiles are cut where cells touch tissue, equal crops of the whole plane, and read every block only once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.data.slides.plane import Plane
from histoblend.data.slides.tiles import Grid, TileSource, choose_cells
from tests.data.slide_files import Bare, most_reads


def padded_plane(plane):
    """Return all pixels of a plane, padded with 1,000 white pixels."""
    blocks = [[plane.read(row, column) for column in range(plane.columns)] for row in range(plane.rows)]
    plane.slide.reads.clear()
    return np.pad(
        np.concatenate([np.concatenate(line, axis=1) for line in blocks]),
        [(1000, 1000), (1000, 1000), (0, 0)],
        constant_values=255,
    )


def make(width, height, size=96, stride=32, spacing=0.972):
    plane = Plane(Bare((width, height), spacing=(spacing, spacing)), 0.972, patch=size)
    return plane, Grid(plane.width, plane.height, size, stride)


@settings(max_examples=40)
@given(st.integers(0, 99), st.integers(1, 96), st.sampled_from([1, 8, 16]), st.sampled_from([32, 96, 200]))
def test_cells_whose_centre_touches_tissue_are_chosen(seed, stride, factor, size):
    rng = np.random.default_rng(seed)
    grid = Grid(int(rng.integers(1, 300)), int(rng.integers(1, 300)), size, stride)
    tissue = rng.random((-(-grid.height // factor), -(-grid.width // factor))) < 0.01
    fine = np.kron(tissue, np.ones((factor, factor), bool))
    expected = set()
    for row in range(grid.rows):
        for column in range(grid.columns):
            top, left = (cell * stride + (stride - 32) // 2 for cell in (row, column))
            # A mask pixel counts if the centre touches any part of it.
            tops, lefts = max(top // factor * factor, 0), max(left // factor * factor, 0)
            bottom, right = -(-(top + 32) // factor) * factor, -(-(left + 32) // factor) * factor
            if fine[tops : max(bottom, 0), lefts : max(right, 0)].any():
                expected.add((row, column))
    rows, columns = choose_cells(grid, tissue, factor)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == expected


def test_centres_tile_the_plane_at_the_default_stride():
    grid = Grid(3200, 1600, 96, 32)
    assert grid.corner(np.arange(3), grid.centre).tolist() == [0, 32, 64]
    assert grid.corner(np.arange(3), grid.size).tolist() == [-32, 0, 32]


@settings(max_examples=25)
@given(
    st.integers(1, 1400),
    st.integers(1, 1400),
    st.sampled_from([32, 96, 224, 600]),
    st.integers(16, 90),
    st.sampled_from([0.5, 0.972, 1.3]),
    st.integers(0, 9),
)
def test_tiles_equal_crops_of_the_whole_plane(width, height, size, stride, spacing, seed):
    plane, grid = make(width, height, size, stride, spacing)
    picture = padded_plane(plane)
    rows, columns = np.nonzero(np.random.default_rng(seed).random((grid.rows, grid.columns)) < 0.2)
    source = TileSource(plane, grid, rows, columns)
    assert sorted(zip(source.table["row"], source.table["column"], strict=True)) == sorted(
        zip(rows, columns, strict=True)
    )
    for start in range(0, len(rows), 37):
        pixels, reasons = source.read(start, min(start + 37, len(rows)))
        assert not reasons
        for number, (row, column) in enumerate(source.table[["row", "column"]].to_numpy()[start : start + 37]):
            top, left = (cell * stride + (stride - size) // 2 + 1000 for cell in (row, column))
            np.testing.assert_array_equal(pixels[number], picture[top : top + size, left : left + size])
    assert max(most_reads(plane.slide).values()) <= 1
    assert not source._blocks


def test_about_two_rows_of_blocks_are_in_memory():
    plane, grid = make(5000, 4000)
    rows, columns = (each.ravel() for each in np.indices((grid.rows, grid.columns)))
    source = TileSource(plane, grid, rows, columns)
    for start in range(0, len(rows), 256):
        source.read(start, min(start + 256, len(rows)))
    assert (plane.rows, plane.columns) == (8, 10)
    assert source.most_held <= 2 * plane.columns + 2
    assert most_reads(plane.slide) == {0: 1}


def test_threads_read_every_block_once():
    plane, grid = make(3000, 2500)
    rows, columns = (each.ravel() for each in np.indices((grid.rows, grid.columns)))
    source = TileSource(plane, grid, rows, columns)
    picture = padded_plane(plane)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda start: source.read(start, start + 50)[0], range(0, len(rows) // 50 * 50, 50)))
    np.testing.assert_array_equal(most_reads(plane.slide)[0], 1)
    row, column = source.table[["row", "column"]].iloc[777]
    top, left = (cell * 32 - 32 + 1000 for cell in (row, column))
    np.testing.assert_array_equal(results[777 // 50][777 % 50], picture[top : top + 96, left : left + 96])


def test_a_resumed_run_reads_only_the_remaining_blocks():
    plane, grid = make(3000, 2500)
    rows, columns = (each.ravel() for each in np.indices((grid.rows, grid.columns)))
    source = TileSource(plane, grid, rows, columns)
    total = len(rows)
    remaining = [(start, start + 100) for start in (0, 300, total - 100)]
    source.expect(remaining)
    for task in remaining:
        source.read(*task)
    assert most_reads(plane.slide) == {0: 1}
    assert len(plane.slide.reads) < plane.rows * plane.columns
    assert not source._blocks


def test_tiles_of_an_unreadable_block_give_the_reason():
    plane, grid = make(2000, 600)
    asked = []

    def read(row, column):
        asked.append((row, column))
        if (row, column) == (0, 1):
            raise InputError("a scratch on the disk")
        return plane.read(row, column)

    rows, columns = (each.ravel() for each in np.indices((grid.rows, grid.columns)))
    source = TileSource(plane, grid, rows, columns, read_block=read)
    _, reasons = source.read(0, len(rows))
    left = source.table["column"].to_numpy() * 32 - 32
    top = source.table["row"].to_numpy() * 32 - 32
    expected = np.flatnonzero((left < 1024) & (left + 96 > 512) & (top < 512))
    assert sorted(reasons) == expected.tolist()
    assert set(reasons.values()) == {"a scratch on the disk"}
    assert len(asked) == len(set(asked))


def test_an_unexpected_error_reaches_every_waiting_thread():
    plane, grid = make(600, 600)
    started, resume = threading.Event(), threading.Event()

    def read(row, column):
        started.set()
        resume.wait(10)
        raise ZeroDivisionError

    source = TileSource(plane, grid, np.zeros(2, int), np.arange(2), read_block=read)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.read, 0, 1)
        started.wait(10)
        second = pool.submit(source.read, 1, 2)
        resume.set()
        for each in (first, second):
            with pytest.raises(ZeroDivisionError):
                each.result()
