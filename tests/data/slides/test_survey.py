"""The survey reads each region at most once, resumes after an interruption and caches the blocks that tiles need."""

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.slides.plane import Plane, area_mean
from histoblend.data.slides.slide import Slide
from histoblend.data.slides.survey import CachedBlocks, picture_factor, survey, survey_plane
from histoblend.data.slides.tiles import Grid, TileSource, choose_cells
from histoblend.data.storage.parts import Parts
from tests.data.slide_files import most_reads, write_tiff

PINK, GLASS = (200, 110, 170), (246, 245, 247)


def picture(width=2600, height=1700):
    """Return glass with an island of noisy tissue on the left."""
    rng = np.random.default_rng(0)
    y, x = np.indices((height, width))
    island = (x - 500) ** 2 + (y - 800) ** 2 < 350**2
    made = np.where(island[..., None], PINK, GLASS) + rng.normal(0, 8, (height, width, 3))
    return np.clip(made, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pixels():
    return picture()


def look(slide, folder):
    plane = Plane(slide, 0.972, patch=96)
    done = []
    return plane, survey(plane, Parts(folder), done.append), sum(done)


def read_all_tiles(plane, seen, folder):
    grid = Grid(plane.width, plane.height, 96, 32)
    rows, columns = choose_cells(grid, seen.tissue, seen.tissue_factor)
    kept = CachedBlocks(plane, Parts(folder)) if survey_plane(plane) is plane else plane
    source = TileSource(plane, grid, rows, columns, read_block=kept.read)
    return source, source.read(0, len(rows))[0]


@pytest.mark.parametrize("mpp", [0.972, 0.5])
def test_with_one_level_no_region_is_read_twice(tmp_path, pixels, mpp):
    with Slide(write_tiff(tmp_path / "a.tif", pixels, mpp=mpp)) as slide:
        plane, seen, done = look(slide, tmp_path)
        assert done == plane.rows * plane.columns == len(slide.reads)
        source, tiles = read_all_tiles(plane, seen, tmp_path)
        assert len(tiles) > 50
        assert most_reads(slide) == {0: 1}
        # Blocks far from tissue are not cached.
        assert len(list(tmp_path.glob("block-*.npz"))) < plane.rows * plane.columns
        if mpp == 0.972:
            row, column = source.table[["row", "column"]].iloc[40]
            region = np.s_[row * 32 - 32 : row * 32 + 64, column * 32 - 32 : column * 32 + 64]
            np.testing.assert_array_equal(tiles[40], pixels[region])


def test_a_coarse_level_is_read_for_the_picture_of_a_large_slide(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("histoblend.data.slides.survey.MAX_PICTURE", 400)
    with Slide(write_tiff(tmp_path / "a.tif", pixels, mpp=0.972, steps=(4,))) as slide:
        plane, seen, _ = look(slide, tmp_path)
        assert picture_factor(plane) == seen.factor == 8
        assert {level for level, *_ in slide.reads} == {1}
        read_all_tiles(plane, seen, tmp_path)
        assert most_reads(slide) == {0: 1, 1: 1}
        assert not list(tmp_path.glob("block-*.npz"))
        expected = area_mean(pixels[::4, ::4], (2, 2), (213, 325))
        assert seen.picture.shape == expected.shape
        np.testing.assert_array_equal(seen.picture, expected)


def test_the_picture_is_the_averaged_plane(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("histoblend.data.slides.survey.MAX_PICTURE", 1500)
    with Slide(write_tiff(tmp_path / "a.tif", pixels)) as slide:
        _, seen, _ = look(slide, tmp_path)
        np.testing.assert_array_equal(seen.picture, area_mean(pixels, (2, 2), (850, 1300)))


def test_tissue_is_detected_where_it_was_drawn(tmp_path, pixels):
    with Slide(write_tiff(tmp_path / "a.tif", pixels)) as slide:
        _, seen, _ = look(slide, tmp_path)
        y, x = (np.indices(seen.tissue.shape) + 0.5) * seen.tissue_factor
        truth = (x - 500) ** 2 + (y - 800) ** 2 < 350**2
        assert 2 * (truth & seen.tissue).sum() / (truth.sum() + seen.tissue.sum()) > 0.97
        assert seen.tissue_factor == 8


def test_a_second_call_reads_nothing_and_a_resumed_call_reads_only_missing_blocks(tmp_path, pixels):
    with Slide(write_tiff(tmp_path / "a.tif", pixels)) as slide:
        _, first, _ = look(slide, tmp_path)
        slide.reads.clear()
        plane, second, done = look(slide, tmp_path)
        assert (slide.reads, done) == ([], 0)
        np.testing.assert_array_equal(first.tissue, second.tissue)
        np.testing.assert_array_equal(first.picture, second.picture)
        # Interrupted before the end: cached blocks are not read again.
        (tmp_path / "survey.npz").unlink()
        kept = len(list(tmp_path.glob("block-*.npz")))
        _, third, _ = look(slide, tmp_path)
        assert len(slide.reads) == plane.rows * plane.columns - kept
        np.testing.assert_array_equal(first.picture, third.picture)


class Damaged(Slide):
    """A slide with unreadable regions."""

    def read(self, level, left, top, width, height):
        if self.is_damaged(left, top):
            raise InputError("damaged")
        return super().read(level, left, top, width, height)


def test_unreadable_regions_are_white_and_counted(tmp_path, pixels):
    with Damaged(write_tiff(tmp_path / "a.tif", pixels)) as slide:
        slide.is_damaged = lambda left, top: left == 512 and top == 512
        _, seen, _ = look(slide, tmp_path)
        assert seen.unread == 1
        assert (seen.picture[512:1024, 512:1024] == 255).all()
        np.testing.assert_array_equal(seen.picture[:512], pixels[:512])
        (tmp_path / "survey.npz").unlink()
        for path in tmp_path.glob("block-*"):
            path.unlink()
        slide.is_damaged = lambda left, top: True
        with pytest.raises(InputError, match="damaged"):
            look(slide, tmp_path)
