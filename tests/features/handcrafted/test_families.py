"""The registry: names parse back, values stay in range, and each row depends on its own patch only."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

from histoblend.features.handcrafted import families, gabor, run_lengths
from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS
from tests.oracles import pictures

NAMES = [column.name for column in families.columns()]
LOW = np.array([column.low for column in families.columns()])
HIGH = np.array([column.high for column in families.columns()])


def assert_in_range(values):
    assert np.isfinite(values).all()
    slack = 1e-5 * np.maximum(1, np.abs(values))
    outside = ((values < LOW - slack) | (values > HIGH + slack)).any(axis=0)
    assert not outside.any(), [NAMES[k] for k in np.flatnonzero(outside)]


@st.composite
def odd_patches(draw):
    """A few patches of any size from 32 px: noise of up to four levels, with constant blocks."""
    height, width = draw(st.integers(32, 60)), draw(st.integers(32, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = np.array(draw(st.lists(st.integers(0, 255), min_size=1, max_size=4)), np.uint8)
    patches = rng.choice(levels, (draw(st.integers(1, 3)), height, width, 3))
    for _ in range(draw(st.integers(0, 3))):
        row, column = rng.integers(0, height), rng.integers(0, width)
        patches[:, row : row + rng.integers(1, 40), column : column + rng.integers(1, 40)] = rng.integers(0, 256, 3)
    return patches


def test_names_are_unique_and_parse_back():
    assert len(set(NAMES)) == len(NAMES)
    for family in families.FAMILIES:
        for column in family.columns:
            parts = families.parse_column(column.name)
            assert parts.family == family.name
            assert "_".join(parts) == column.name
            assert parts.region in REGION_WORDS


def test_group_columns_by_family_theme_and_region():
    names = [
        "colour_mean_red_whole",
        "lbp_r1-p0_grey_centre",
        "embedding_net-0000_rgb_whole",
        "lbp_r1-p1_grey_whole",
        "cooccurrence_asm-d1-mean-in-slide_grey_centre",
        "newcomer_mean_grey_ring",
    ]
    assert families.group_columns(names, "family") == {
        "colour": [0],
        "lbp": [1, 3],
        "embedding": [2],
        "cooccurrence": [4],
        "newcomer": [5],
    }
    assert families.group_columns(names, "theme") == {
        "colour": [0],
        "texture": [1, 3, 4],
        "embeddings": [2],
        "newcomer": [5],
    }
    assert families.group_columns(names, "region") == {"whole": [0, 2, 3], "centre": [1, 4], "ring": [5]}
    with pytest.raises(ValueError, match=r"by must be 'family', 'theme' or 'region'; got 'channel'"):
        families.group_columns(names, "channel")


def test_every_family_has_a_theme():
    themed = [family for theme in families.THEMES.values() for family in theme]
    assert len(set(themed)) == len(themed)
    assert {family.name for family in families.FAMILIES} <= set(themed)


def test_every_column_has_a_description():
    for column in families.columns():
        assert column.sentence.endswith(".")
        assert column.sentence[0].isupper() or column.sentence[0].isdigit()
        assert column.reference
        assert column.unit
        assert column.low < column.high


def test_table_width_equals_number_of_columns():
    patches = pictures.tissue(0)[None]
    assert families.compute(patches).shape == (1, len(NAMES))
    for family in families.FAMILIES:
        values = family.compute(Planes(patches))
        assert values.shape == (1, len(family.columns))
        assert values.dtype == np.float32


def test_families_keep_the_requested_order():
    patches = np.stack([pictures.tissue(seed) for seed in range(2)])
    both = families.compute(patches, ["nuclei", "colour"])
    split = len(families.family_named("nuclei").columns)
    np.testing.assert_array_equal(both[:, :split], families.compute(patches, ["nuclei"]))
    np.testing.assert_array_equal(both[:, split:], families.compute(patches, ["colour"]))
    assert [column.name for column in families.columns(["nuclei", "colour"])][split].startswith("colour_")


def test_a_row_depends_on_its_own_patch_only():
    patches = np.stack([*(pictures.tissue(seed) for seed in range(60)), *pictures.extremes().values()])
    together = families.compute(patches)
    assert len(patches) > 64
    np.testing.assert_array_equal(together[::-1], families.compute(patches[::-1]))
    np.testing.assert_array_equal(
        together[::7], np.concatenate([families.compute(patch[None]) for patch in patches[::7]])
    )


def test_a_read_only_memory_map_gives_the_same_table(tmp_path):
    patches = np.stack([pictures.tissue(seed) for seed in range(2)])
    np.save(tmp_path / "pixels.npy", patches)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    np.testing.assert_array_equal(families.compute(mapped), families.compute(patches))


def test_no_patches_give_an_empty_table():
    assert families.compute(np.empty((0, 96, 96, 3), np.uint8)).shape == (0, len(NAMES))


@settings(max_examples=60)
@given(odd_patches())
def test_any_pixels_give_finite_values_in_range(patches):
    assert_in_range(families.compute(patches))


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (96, 96), (224, 224)])
def test_extreme_pictures_give_finite_values_in_range(size):
    assert_in_range(families.compute(np.stack(list(pictures.extremes(*size).values()))))


@pytest.mark.parametrize("value", [0, 117, 255])
def test_a_constant_patch_has_no_texture_and_no_nuclei(value):
    values = dict(zip(NAMES, families.compute(np.full((1, 96, 96, 3), value, np.uint8))[0], strict=True))
    assert values["colour_mean_red_whole"] == np.float32(value / 255)
    assert values["nuclei_count_absorbed_whole"] == 0
    for name, number in values.items():
        family, statistic, _, _ = families.parse_column(name)
        if family == "gradient" or (family == "colour" and statistic in ("spread", "skew")):
            assert number == pytest.approx(0, abs=1e-12), name
        if family in ("cooccurrence", "multiscale") and statistic.startswith(("contrast", "entropy")):
            assert number == 0, name


def is_invariant(name):
    """Whether a column must not change when a patch whose side is a multiple of 16 pixels is turned or mirrored."""
    family, _, _, region = families.parse_column(name)
    # rounding breaks ties of local binary patterns; perimeters and peaks of nuclei depend on the raster
    return region == "whole" and family not in ("lbp", "nuclei")


@pytest.mark.parametrize("turn", range(1, 8))
def test_whole_patch_statistics_do_not_change_when_turned_or_mirrored(turn):
    patch = pictures.tissue(3)
    transformed = np.rot90(patch[:, ::-1] if turn >= 4 else patch, turn % 4)
    before, after = families.compute(np.stack([patch, transformed]))
    chosen = np.array([is_invariant(name) for name in NAMES])
    np.testing.assert_allclose(after[chosen], before[chosen], rtol=1e-5, atol=1e-7)


def test_an_unknown_family_raises_and_names_the_nearest():
    with pytest.raises(ValueError, match=r"got 'color'\. Did you mean 'colour'"):
        families.family_named("color")
    with pytest.raises(ValueError, match=r"must be one of colour, .*; got 'zzz'\.$"):
        families.family_named("zzz")


@pytest.mark.parametrize("workers", [1, 2])
def test_kernels_are_compiled_family_by_family(workers):
    finished = []
    families.compile_kernels(["runs", "multiscale", "gabor"], workers=workers, progress=finished.append)
    assert finished == [1, 1, 1]
    assert workers > 1 or run_lengths._runs_kernel.signatures


def test_processes_start_only_to_compile(monkeypatch):
    families.compute(np.zeros((1, 32, 32, 3), np.uint8), ["runs", "gabor"])  # now the cache has their kernels
    started, finished = [], []
    monkeypatch.setattr("joblib.Parallel", lambda **options: lambda tasks: started.append(options) or list(tasks))
    families.compile_kernels(["runs", "gabor"], workers=2, progress=finished.append)
    assert (started, finished) == ([], [1, 1])
    monkeypatch.setattr(gabor._energy_kernel._cache._cache_file, "_load_index", dict)
    monkeypatch.setattr(run_lengths._runs_kernel._cache._cache_file, "_load_index", dict)
    families.compile_kernels(["runs", "gabor", "multiscale"], workers=2)
    assert [options["n_jobs"] for options in started] == [2]


def test_each_kernel_is_compiled_for_one_signature():
    families.compute(np.zeros((1, 32, 32, 3), np.uint8))
    modules = [module for name, module in sys.modules.items() if name.startswith(families.__package__ + ".")]
    kernels = {kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, Dispatcher)}
    # the cache also lists kernels that only other kernels call
    signatures = {kernel.py_func: {key[0] for key in kernel._cache._cache_file._load_index()} for kernel in kernels}
    assert len(signatures) > 50
    assert not {kernel: found for kernel, found in signatures.items() if len(found) != 1}


def test_compiling_an_unknown_family_raises():
    with pytest.raises(ValueError, match="Did you mean 'runs'"):
        families.compile_kernels(["run"])


@pytest.mark.parametrize("size", [(32, 32), (32, 40), (33, 33), (96, 96)])
def test_centre_minus_ring_is_zero_without_a_ring_or_a_difference(size):
    # local binary patterns see black pixels beyond the border
    chosen = [name.endswith("_contrast") and not name.startswith("lbp") for name in NAMES]
    constant = families.compute(np.full((1, *size, 3), 90, np.uint8))[0, chosen]
    np.testing.assert_array_equal(constant, 0)
    if size == (32, 32):
        noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
        kept = [name.endswith("_contrast") and not name.startswith("nuclei") for name in NAMES]
        np.testing.assert_allclose(families.compute(noise)[0, kept], 0, atol=1e-12)


@pytest.mark.parametrize("chosen", ["colour", [], ["lbp", "lbp"]])
def test_a_bad_list_of_families_is_rejected(chosen):
    with pytest.raises(ValueError, match="non-empty list of different names"):
        families.columns(chosen)


@pytest.mark.parametrize("name", ["colour_mean_red", "a_b_c_d_e", "a__c_d", ""])
def test_a_name_without_four_parts_is_rejected(name):
    with pytest.raises(ValueError, match="family_statistic_channel_region"):
        families.parse_column(name)


@pytest.mark.parametrize(
    ("patches", "error", "message"),
    [
        (np.zeros((1, 96, 96), np.uint8), ValueError, r"shape \(n, height, width, 3\); got \(1, 96, 96\)"),
        (np.zeros((1, 96, 96, 4), np.uint8), ValueError, r"got \(1, 96, 96, 4\)"),
        (np.zeros((1, 31, 96, 3), np.uint8), ValueError, "at least 32 × 32 pixels.*got 31 × 96"),
        (np.zeros((1, 96, 96, 3), np.float32), TypeError, "must be uint8.*got float32"),
    ],
)
def test_wrong_arrays_are_rejected(patches, error, message):
    with pytest.raises(error, match=message):
        families.compute(patches)
    with pytest.raises(error, match=message):
        Planes(patches)
