"""Tissue is detected on phantom tissue, and not on glass, dust, shadows or ink."""

import numpy as np
import pytest

from histoblend.data.phantom.drawing import draw
from histoblend.data.phantom.patches import plan_pieces
from histoblend.data.slides.plane import area_mean
from histoblend.data.slides.tissue import chroma, find_tissue, is_ink

SPACING = 7.776


@pytest.fixture(scope="module")
def tissue():
    """Return phantom tissue of 2 × 2 mm at low resolution."""
    patches, stains = plan_pieces(16, seed=3)
    pieces = np.concatenate([draw(patches[i : i + 1], stains[i : i + 1], 512)[0] for i in range(16)])
    small = [area_mean(piece, (8, 8), (64, 64)) for piece in pieces]
    return np.concatenate([np.concatenate(small[4 * row : 4 * row + 4], axis=1) for row in range(4)])


def glass(colour=(246, 245, 247), noise=1.5, side=256):
    rng = np.random.default_rng(0)
    return np.clip(np.array(colour) + rng.normal(0, noise, (side, side, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "colour", [(246, 245, 247), (230, 228, 238), (255, 255, 255), (214, 212, 214), (244, 238, 228)]
)
@pytest.mark.parametrize("noise", [0, 1.5, 4])
def test_bare_glass_has_no_tissue(colour, noise):
    assert not find_tissue(glass(colour, noise), SPACING).any()


def test_a_slide_full_of_tissue_is_all_tissue(tissue):
    assert find_tissue(tissue, SPACING).mean() > 0.99


def test_the_outline_of_an_island_is_accurate(tissue):
    y, x = np.indices((256, 256))
    truth = (x - 120) ** 2 + (y - 130) ** 2 < 90**2
    mask = find_tissue(np.where(truth[..., None], tissue, glass()), SPACING)
    assert 2 * (truth & mask).sum() / (truth.sum() + mask.sum()) > 0.97


def test_specks_are_removed_and_only_small_holes_are_filled(tissue):
    picture = glass()
    picture[40:220, 40:220] = tissue[40:220, 40:220]
    picture[100:110, 100:110] = glass()[:10, :10]  # 0.006 mm²
    picture[150:190, 150:190] = glass()[:40, :40]  # 0.097 mm²
    picture[10:14, 10:14] = tissue[100:104, 100:104]  # 0.001 mm²
    mask = find_tissue(picture, SPACING)
    assert not mask[:30, :30].any()
    assert mask[100:110, 100:110].all()
    assert not mask[155:185, 155:185].any()


@pytest.mark.parametrize("ink", [(20, 40, 120), (20, 110, 50), (15, 15, 18), (40, 60, 150)])
def test_ink_on_glass_or_tissue_is_not_tissue(tissue, ink):
    for ground in (glass(), tissue):
        picture = ground.copy()
        picture[60:90] = ink
        assert not find_tissue(picture, SPACING)[63:87].any()


def test_small_dark_areas_in_tissue_stay_tissue(tissue):
    picture = tissue.copy()
    picture[60:66, 60:66] = (40, 20, 45)
    assert is_ink(picture)[60:66, 60:66].all()
    assert find_tissue(picture, SPACING)[60:66, 60:66].all()


def test_grey_dust_shadow_and_frame_are_not_tissue():
    picture = glass()
    picture[50:100, 50:100] = (150, 150, 150)
    picture[150:200, :] = (205, 205, 207)
    picture[:, 240:] = 30
    assert not find_tissue(picture, SPACING).any()


def test_chroma_equals_the_value_calculated_by_hand():
    # haematoxylin after Ruifrok: densities 0.650, 0.704, 0.286
    light = (256 * 10 ** -np.array([0.65, 0.704, 0.286]) - 1).round().astype(np.uint8)
    assert chroma(light[None, None])[0, 0] == pytest.approx(0.704 - 0.286, abs=0.01)
    assert chroma(np.full((1, 1, 3), 77, np.uint8))[0, 0] == 0
