import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from histoblend.data.errors import InputError
from histoblend.data.phantom.faults import FAULTS, SHARE_WITHOUT_SLIDE, apply_symmetry
from histoblend.data.phantom.patches import DOMAINS, PREVALENCE, Phantom, phantom


@pytest.fixture(scope="module")
def plain() -> Phantom:
    return phantom(400, slides=12, seed=3)


@pytest.fixture(scope="module")
def faulty() -> Phantom:
    return phantom(2000, slides=12, seed=5, faults=True)


def rows(drawn: Phantom, fault: str) -> np.ndarray:
    return np.flatnonzero(drawn.table["fault"] == fault)


def one(drawn: Phantom, row: int) -> np.ndarray:
    return drawn.render(row, row + 1)[0]


def original_of(drawn: Phantom, row: int) -> int:
    return int(np.flatnonzero(drawn.table["patch_id"] == drawn.table["duplicate_of"].iloc[row])[0])


def phi(drawn: Phantom) -> float:
    return float(np.corrcoef(drawn.table["true_label"], drawn.table["domain"] == DOMAINS[1])[0, 1])


# Determinism


def test_same_seed_gives_the_same_table_and_bytes(plain: Phantom) -> None:
    again = phantom(400, slides=12, seed=3)
    assert again.table.equals(plain.table)
    assert np.array_equal(again.render(0, 40), plain.render(0, 40))


def test_another_seed_gives_other_ids_and_other_pixels(plain: Phantom) -> None:
    other = phantom(400, slides=12, seed=4)
    assert not set(other.table["patch_id"]) & set(plain.table["patch_id"])
    assert all((a != b).mean() > 0.5 for a, b in zip(plain.render(0, 8), other.render(0, 8), strict=True))


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(0, 60), max_size=5))
def test_pixels_do_not_depend_on_the_chunks(faulty: Phantom, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 60]
    pieces = [faulty.render(a, b) for a, b in pairwise(bounds)]
    assert np.array_equal(np.concatenate(pieces), faulty.render(0, 60))


def test_threads_draw_the_same_pixels_as_one_thread(faulty: Phantom) -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda row: one(faulty, row), range(80)))
    assert np.array_equal(np.stack(drawn), faulty.render(0, 80))


def test_faults_off_plants_nothing(plain: Phantom) -> None:
    table = plain.table
    assert (table["fault"] == "").all()
    assert (table["duplicate_of"] == "").all()
    assert table["slide"].notna().all()
    assert (table["label"] == table["true_label"]).all()
    assert len(np.unique(plain.render(0, 400).reshape(400, -1), axis=0)) == 400


# The table


def test_ids_are_unique_and_look_like_kaggles(faulty: Phantom) -> None:
    assert faulty.table["patch_id"].is_unique
    assert faulty.table["patch_id"].str.fullmatch("[0-9a-f]{40}").all()


@pytest.mark.parametrize("slides", [2, 5, 24, 40])
def test_every_slide_has_patches_of_one_scanner(slides: int) -> None:
    table = phantom(1000, slides=slides, seed=0).table
    assert len(table) == 1000
    assert table["slide"].nunique() == slides
    assert (table.groupby("slide")["domain"].nunique() == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_prevalence_is_0_4_and_differs_between_slides(seed: int) -> None:
    table = phantom(4000, slides=24, seed=seed).table
    share = table.groupby("slide")["label"].mean()
    assert table["label"].mean() == pytest.approx(PREVALENCE, abs=0.02)
    assert (share < 0.1).sum() >= 2
    assert (share > 0.9).sum() >= 1
    assert ((share > 0.2) & (share < 0.8)).sum() >= 4


@pytest.mark.parametrize("seed", range(5))
def test_scanners_have_equal_shares_of_patches_and_tumour(seed: int) -> None:
    drawn = phantom(2000, slides=24, seed=seed)
    first = (drawn.table["domain"] == DOMAINS[0]).mean()
    assert first == pytest.approx(0.5, abs=0.01)
    assert abs(phi(drawn)) < 0.02


@pytest.mark.parametrize(("confound", "tolerance"), [(0.25, 0.15), (0.5, 0.15), (0.75, 0.15), (1.0, 1e-9)])
def test_confound_is_the_correlation_of_tumour_and_scanner(confound: float, tolerance: float) -> None:
    assert phi(phantom(4000, slides=40, seed=1, confound=confound)) == pytest.approx(confound, abs=tolerance)


# The label rule


def centre(size: int) -> slice:
    start = (size - 32) // 2
    return slice(start, start + 32)


@pytest.mark.parametrize(("size", "n"), [(32, 60), (33, 60), (64, 60), (96, 400), (97, 60), (224, 30)])
def test_label_says_whether_tumour_was_drawn_in_the_centre(size: int, n: int) -> None:
    drawn = phantom(n, slides=6, seed=size, size=size)
    assert drawn.render(0, 2).shape == (2, size, size, 3)
    masks = np.stack([drawn.tumour_mask(row) for row in range(n)])
    inside = masks[:, centre(size), centre(size)].any(axis=(1, 2))
    assert np.array_equal(inside, drawn.table["label"] == 1)
    ring = masks.any(axis=(1, 2)) & ~inside
    # a planned ring may stay empty on a patch with little tissue, but no unplanned ring appears
    assert not ring[~drawn.table["tumour_in_ring"]].any()


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_label_rule_holds_at_both_ends_of_difficulty(difficulty: float) -> None:
    drawn = phantom(200, slides=6, seed=11, difficulty=difficulty)
    inside = [drawn.tumour_mask(row)[centre(96), centre(96)].any() for row in range(200)]
    assert np.array_equal(inside, drawn.table["label"] == 1)


def test_most_planned_rings_hold_tumour(plain: Phantom) -> None:
    planned = np.flatnonzero(plain.table["tumour_in_ring"])
    assert 0.08 < len(planned) / (plain.table["label"] == 0).sum() < 0.5
    assert np.mean([plain.tumour_mask(row).any() for row in planned]) > 0.85


def test_the_mask_covers_the_drawn_nuclei(plain: Phantom) -> None:
    # tumour nuclei absorb more red light than the cytoplasm around them
    darker = []
    for row in np.flatnonzero(plain.table["label"] == 1)[:30]:
        mask = plain.tumour_mask(row)
        rim = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
        red = one(plain, row)[..., 0].astype(float)
        darker.append(np.median(red[rim]) - np.median(red[mask]))
    assert np.mean(np.array(darker) > 10) > 0.9


# Physics


def test_recorded_haematoxylin_correlates_with_nuclear_density() -> None:
    drawn = phantom(1200, slides=30, seed=2, size=48)
    red = -np.log10((drawn.render(0, 1200)[..., 0] + 1.0) / 256).reshape(1200, -1)
    table = drawn.table.assign(density=np.percentile(red, 90, axis=1))
    table = table[(table["tissue"] == "lymphoid") & (table["domain"] == DOMAINS[0])]
    means = table.groupby("slide")[["density", "haematoxylin_intensity"]].mean()
    assert means.corr().iloc[0, 1] > 0.7


def test_the_two_scanners_give_different_colours(plain: Phantom) -> None:
    images = plain.render(0, 400).astype(float).mean(axis=(1, 2))
    blue_minus_red = images[:, 2] - images[:, 0]
    second = (plain.table["domain"] == DOMAINS[1]).to_numpy()
    assert blue_minus_red[second].mean() - blue_minus_red[~second].mean() > 15


# Faults


def test_each_fault_has_its_planned_share(faulty: Phantom) -> None:
    counts = faulty.table["fault"].value_counts()
    assert {name: counts[name] for name in FAULTS} == {name: round(share * 2000) for name, share in FAULTS.items()}
    assert faulty.table["slide"].isna().sum() == round(SHARE_WITHOUT_SLIDE * 2000)
    assert faulty.table["true_slide"].notna().all()


def test_faults_are_independent_of_the_label() -> None:
    table = phantom(50_000, slides=40, seed=2, faults=True).table
    for fault in set(FAULTS) - {"blank", "black", "mislabelled"}:
        share = table.loc[table["fault"] == fault, "true_label"].mean()
        # 250 patches or more: 0.4 within four standard errors
        assert abs(share - 0.4) < 4 * np.sqrt(0.24 / 250), fault


def test_duplicates_have_the_same_pixels_and_some_are_in_other_slides(faulty: Phantom) -> None:
    copies = rows(faulty, "duplicate")
    sources = [original_of(faulty, row) for row in copies]
    assert all(np.array_equal(one(faulty, a), one(faulty, b)) for a, b in zip(copies, sources, strict=True))
    table = faulty.table
    assert len(set(sources)) == len(sources)
    assert (table["fault"].iloc[sources] == "").all()
    same_slide = table["slide"].iloc[copies].to_numpy() == table["slide"].iloc[sources].to_numpy()
    assert same_slide.any()
    assert not same_slide.all()


def test_mirrored_copies_are_a_symmetry_of_the_original(faulty: Phantom) -> None:
    for row in rows(faulty, "mirrored"):
        picture, source = one(faulty, row), one(faulty, original_of(faulty, row))
        turns = [np.rot90(source, k) for k in range(4)]
        others = [*turns[1:], *(turn[:, ::-1] for turn in turns)]
        assert not np.array_equal(picture, source)
        assert sum(np.array_equal(picture, other) for other in others) == 1


def test_near_duplicates_are_close_to_a_symmetry_but_not_equal(faulty: Phantom) -> None:
    for row in rows(faulty, "near-duplicate"):
        picture, source = one(faulty, row).astype(int), one(faulty, original_of(faulty, row))
        expected = apply_symmetry(source, int(faulty.table["symmetry"].iloc[row]))
        assert 0 < np.abs(picture - expected).mean() < 12
        assert np.corrcoef(picture.ravel(), expected.ravel())[0, 1] > 0.97


def test_copies_have_the_ground_truth_of_their_original(faulty: Phantom) -> None:
    for row in np.flatnonzero(faulty.table["duplicate_of"] != "")[:40]:
        source = original_of(faulty, row)
        truth = ["true_label", "true_slide", "domain", "tissue", "focus", "haematoxylin_angle"]
        assert faulty.table[truth].iloc[row].equals(faulty.table[truth].iloc[source])
        inside = faulty.tumour_mask(row)[centre(96), centre(96)].any()
        assert inside == (faulty.table["true_label"].iloc[row] == 1)


def test_wrong_labels_are_recorded_as_faults(faulty: Phantom) -> None:
    table = faulty.table
    wrong = (table["label"] != table["true_label"]).to_numpy()
    assert wrong[rows(faulty, "mislabelled")].all()
    assert set(table["fault"][wrong]) == {"mislabelled", "duplicate"}
    assert wrong[rows(faulty, "duplicate")].sum() == 2  # a tenth of twenty


@pytest.mark.parametrize(("fault", "low", "high"), [("blank", 200, 255), ("black", 0, 8)])
def test_blank_and_black_patches_are_flat(faulty: Phantom, fault: str, low: int, high: int) -> None:
    for row in rows(faulty, fault):
        picture = one(faulty, row)
        assert low < picture.mean() + 1 <= high + 1
        assert picture.std(axis=(0, 1)).max() < 6
        assert faulty.table["true_label"].iloc[row] == 0


def test_no_patch_without_a_fault_is_flat(faulty: Phantom) -> None:
    sound = rows(faulty, "")[:500]
    assert min(one(faulty, row).std(axis=(0, 1)).max() for row in sound) > 10


def test_blurred_patches_have_weak_edges(faulty: Phantom) -> None:
    def sharpness(row: int) -> float:
        return float(ndimage.laplace(one(faulty, row)[..., 1].astype(float)).std())

    blurred = [sharpness(row) for row in rows(faulty, "blurred")]
    sound = [sharpness(row) for row in rows(faulty, "")[:200]]
    assert np.median(blurred) < 0.4 * np.median(sound)
    assert (faulty.table["focus"].iloc[rows(faulty, "blurred")] >= 2.5).all()
    assert (faulty.table["focus"].iloc[rows(faulty, "")] < 1.5).all()


def test_pen_ink_absorbs_light(faulty: Phantom) -> None:
    darkest = [one(faulty, row).astype(float)[..., 0] for row in rows(faulty, "pen")]
    assert all(np.median(red[40:56, 40:56]) < 90 for red in darkest)


# Symmetries


def test_symmetries_are_the_eight_of_the_square() -> None:
    image = np.arange(9).reshape(3, 3)
    expected = {
        0: [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        1: [[2, 5, 8], [1, 4, 7], [0, 3, 6]],
        2: [[8, 7, 6], [5, 4, 3], [2, 1, 0]],
        4: [[2, 1, 0], [5, 4, 3], [8, 7, 6]],
        5: [[8, 5, 2], [7, 4, 1], [6, 3, 0]],
    }
    for symmetry, picture in expected.items():
        assert apply_symmetry(image, symmetry).tolist() == picture
    assert len({apply_symmetry(image, s).tobytes() for s in range(8)}) == 8


# Scale and bad input


def test_streaming_uses_little_memory() -> None:
    drawn = phantom(1500, slides=8, seed=0, size=64)
    drawn.render(0, 1)
    tracemalloc.start()
    total = sum(int(drawn.render(start, stop)[:, 0, 0, 0].size) for start, stop in drawn.chunks(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1500
    assert peak < 0.2 * 1500 * 64 * 64 * 3  # a chunk and its masks take 1/15 and 1/3 of that


def test_planning_the_full_size_draws_no_pixels() -> None:
    tracemalloc.start()
    drawn = phantom(220_025, slides=216, seed=0, faults=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 220_025
    assert peak < 400e6  # the pixels would be 6.1 GB
    assert drawn.render(220_024, 220_025).shape == (1, 96, 96, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slides": 1}, "slides must be at least 2; got 1"),
        ({"n": 3}, r"n must be at least the number of slides \(4\); got 3"),
        ({"seed": -1}, "seed must not be negative; got -1"),
        ({"difficulty": 1.5}, "difficulty must be between 0 and 1; got 1.5"),
        ({"confound": float("nan")}, "confound must be between 0 and 1; got nan"),
        ({"size": 31}, "size must be at least 32, the size of the labelled centre; got 31"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_rejected(change: dict[str, float], message: str) -> None:
    arguments = {"n": 20, "slides": 4, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        phantom(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (398, 401), (5, 4)])
def test_missing_rows_are_rejected(plain: Phantom, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="Rows must be between 0 and 400"):
        plain.render(start, stop)
