"""Rasters, transform and regions agree when other tools read them."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histoblend.reports.heatmap.files import regions, transform, write_picture, write_raster
from tests.reports.heat_maps import VALUES, make_heat
from tests.reports.heatmap.test_outlines import inside, signed_area


def test_the_ome_tiff_holds_the_values_and_the_size_of_a_pixel(tmp_path):
    write_raster(tmp_path / "a.ome.tif", make_heat(), "a <slide> & more: probability")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), VALUES)
        assert file.is_ome
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    assert pixels["Name"] == "a <slide> & more: probability"
    assert pixels["Pixels"]["PhysicalSizeX"] == pytest.approx(31.104)
    assert pixels["Pixels"]["PhysicalSizeXUnit"] == "µm"
    assert pixels["Pixels"]["Type"] == "float"


def test_a_large_raster_is_a_pyramid_of_means(tmp_path):
    rng = np.random.default_rng(0)
    values = np.where(rng.random((301, 700)) < 0.3, np.nan, rng.random((301, 700))).astype(np.float32)
    write_raster(tmp_path / "a.ome.tif", make_heat(values), "a")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(301, 700), (151, 350), (76, 175)]
        second = levels[1].asarray()
    np.testing.assert_allclose(second[3, 7], np.nanmean(values[6:8, 14:16]), rtol=1e-6)
    np.testing.assert_allclose(second[-1, 7], np.nanmean(values[300:, 14:16]), rtol=1e-6)


def test_the_png_is_grey_where_something_was_predicted(tmp_path):
    write_picture(tmp_path / "a.png", make_heat())
    with Image.open(tmp_path / "a.png") as picture:
        grey, opacity = np.moveaxis(np.asarray(picture), 2, 0)
    np.testing.assert_array_equal(opacity, np.where(np.isnan(VALUES), 0, 255))
    np.testing.assert_allclose(grey / 255, np.nan_to_num(VALUES), atol=0.5 / 255)


def test_the_transform_takes_pixels_to_the_slide():
    content = json.loads(json.dumps(transform(make_heat())))
    position = np.array(content["affine_to_level0"]) @ [3, 2, 1]
    assert position.tolist() == [192, 128, 1]
    assert content["um_per_pixel"] == pytest.approx([31.104, 31.104])
    assert (content["level0_width"], content["width"]) == (352, 6)


def test_regions_filled_again_are_the_cells_labelled_positive():
    heat = make_heat()
    collection, table = regions(heat)
    y, x = (np.indices(VALUES.shape) + 0.5) * 64
    y, x = np.minimum(y, 287), np.minimum(x, 351)
    found = np.zeros(VALUES.shape, bool)
    for feature in collection["features"]:
        exterior, *holes = (np.array(ring) for ring in feature["geometry"]["coordinates"])
        own = inside(exterior, x, y)
        for hole in holes:
            own &= ~inside(hole, x, y)
        found |= own
    np.testing.assert_array_equal(found, heat.positive)
    assert len(table) == len(collection["features"]) == 3


def test_region_measurements_are_right():
    heat = make_heat()
    collection, table = regions(heat)
    first = collection["features"][0]
    assert collection["type"] == "FeatureCollection"
    assert first["type"] == "Feature"
    assert first["geometry"]["type"] == "Polygon"
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"] == {"name": "Predicted tumour", "color": [213, 94, 0]}
    cells = [0.9] * 7 + [0.8, 0.6, 0.7]
    measures = first["properties"]["measurements"]
    assert measures["Area mm^2"] == pytest.approx(10 * 0.031104**2, abs=1e-6)
    assert measures["Mean probability"] == pytest.approx(np.mean(cells), abs=1e-6)
    assert measures["Max probability"] == pytest.approx(0.9, abs=1e-6)
    assert table["area_mm2"].is_monotonic_decreasing
    assert table.loc[0, ["left", "top", "right", "bottom"]].tolist() == [0, 0, 256, 256]
    # The region at the lower right corner ends with the slide, and its area with it.
    corner = table[table["right"] == 352].iloc[0]
    assert corner["bottom"] == 288
    assert corner["area_mm2"] == pytest.approx((0.5 + 0.25) * 0.031104**2)


def test_regions_count_from_the_corner_of_the_scanned_part_and_the_table_from_the_slides():
    (plain, before), (moved, table) = (regions(make_heat(origin=origin)) for origin in ((0, 0), (100, 30)))
    pd.testing.assert_frame_equal(before, table)
    # The first region's box is 0 to 256 px on level 0, both ways.
    exterior = np.array(moved["features"][0]["geometry"]["coordinates"][0])
    assert exterior.min(axis=0).tolist() == [-100, -30]
    assert exterior.max(axis=0).tolist() == [156, 226]
    for one, other in zip(plain["features"], moved["features"], strict=True):
        assert one["properties"] == other["properties"]
        for ring, shifted in zip(one["geometry"]["coordinates"], other["geometry"]["coordinates"], strict=True):
            assert (np.array(ring) - np.array(shifted) == [100, 30]).all()


def test_the_transform_tells_where_qupath_begins():
    assert transform(make_heat(origin=(100, 30)))["level0_of_qupath_origin"] == [100, 30]
    assert transform(make_heat())["level0_of_qupath_origin"] == [0, 0]


def test_rings_are_closed_and_turn_against_their_holes():
    collection, _ = regions(make_heat())
    for feature in collection["features"]:
        exterior, *holes = (np.array(ring) for ring in feature["geometry"]["coordinates"])
        for ring in (exterior, *holes):
            assert (ring[0] == ring[-1]).all()
        assert signed_area(exterior) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
    assert len(collection["features"][0]["geometry"]["coordinates"]) == 2
    assert len({feature["id"] for feature in collection["features"]}) == 3


def test_without_a_positive_cell_there_is_no_region():
    collection, table = regions(make_heat(threshold=1.1))
    assert collection == {"type": "FeatureCollection", "features": []}
    assert list(table.columns)[:2] == ["name", "area_mm2"]
    assert len(table) == 0
