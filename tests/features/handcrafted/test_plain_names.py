"""Plain names, units and synonyms: correct, unique and short for every column, and they can be searched for."""

import re

import pytest

from histoblend.features.handcrafted import search_words
from histoblend.features.handcrafted.families import FAMILIES, columns, parse_column
from histoblend.features.handcrafted.plain_names import matching_columns, plain_name, synonyms, unit
from histoblend.features.handcrafted.slide_context import context_columns
from histoblend.features.networks.backbones import BACKBONES
from histoblend.features.slide_stain import normalised_name
from histoblend.models.cnn import column_names

NAMES = [column.name for column in columns()]
OWN = [*NAMES, *column_names(3)]
ALL = [*context_columns(OWN), *context_columns(list(map(normalised_name, OWN)))]

#: Column, plain name and unit, from the definitions in the families' docstrings.
EXAMPLES = [
    ("nuclei_area-spread_absorbed_whole", "spread of nuclear area, whole patch", "px²"),
    ("nuclei_area-nearest_absorbed_centre", "area of the most central nucleus", "px²"),
    ("nuclei_intensity-mean_absorbed_contrast", "mean nuclear darkness, centre minus outside", "−1 to 1"),
    ("nuclei_gap-q90_absorbed_whole", "90th percentile of nearest-neighbour distance of nuclei, whole patch", "px"),
    ("nuclei_count_absorbed_centre", "number of nuclei, centre", "nuclei"),
    ("nuclei_gabriel-spread_absorbed_whole", "spread of Gabriel edges between nuclei, whole patch", "px"),
    ("nuclei_gabriel-degree_absorbed_whole", "Gabriel neighbours per nucleus, whole patch", "nuclei"),
    ("colour_mean_red_ring", "mean red level, outside the centre", "0–1"),
    (
        "colour_q95_haematoxylin_whole",
        "95th percentile of haematoxylin amount, whole patch",
        "log10 optical density / 6",
    ),
    ("colour_mean_hue_whole", "mean hue, whole patch", "turns of 360°"),
    ("colour_q50_green-red_whole", "median green-to-red balance (a*), whole patch", "a* (−128 to 127)"),
    ("colour_skew_lightness_whole", "skewness of lightness, whole patch", "none"),
    ("stain_angle_both_whole", "angle between the stain vectors, whole patch", "radians"),
    ("stain_mean_eosin_centre", "mean eosin amount (patch's vectors), centre", "log10 optical density"),
    ("stain_mean-on-slide_eosin_centre", "mean eosin amount (slide's vectors), centre", "log10 optical density"),
    ("stain_ratio-on-slide_both_whole", "haematoxylin share (slide's vectors), whole patch", "−1 to 1"),
    ("cooccurrence_entropy-d3-mean_grey_whole", "entropy of grey texture at 3 px, whole patch", "nats"),
    (
        "cooccurrence_contrast-d1-range_eosin_whole",
        "anisotropy of contrast, eosin at 1 px, whole patch",
        "levels² of 16",
    ),
    ("runs_high_grey_whole", "high-level run emphasis of grey texture, whole patch", "levels² of 8"),
    ("lbp_r2-p3_haematoxylin_whole", "pixels with 3 of 16 neighbours as high, haematoxylin, whole patch", "0–1"),
    ("lbp_r1-mixed_grey_centre", "irregular patterns of 8 neighbours, grey, centre", "0–1"),
    ("gradient_blob-count-s4_grey_centre", "density of dark blobs, grey at 4 px, centre", "per px²"),
    ("gabor_share-w13_grey_whole", "energy share of 13 px texture waves, grey, whole patch", "0–1"),
    ("multiscale_haar3-corners_eosin_whole", "diagonal wavelet energy at 8 px, eosin, whole patch", "log10 energy"),
    (
        "nuclei_area-spread-in-slide_absorbed_whole",
        "spread of nuclear area relative to slide, whole patch",
        "slide SDs",
    ),
    (
        "nuclei_area-mean-normalised-in-slide_absorbed_whole",
        "mean nuclear area relative to slide, whole patch, stains normalised",
        "slide SDs",
    ),
    ("nuclei_count-normalised_absorbed_whole", "number of nuclei, whole patch, stains normalised", "nuclei"),
    ("embedding_efficientnet-lite2-0017_rgb_whole", "embedding column 17 of EfficientNet-Lite2, whole patch", "none"),
    (
        "embedding_mobilenet-v2-140-192px-d4-max-stage3-0004-in-slide_rgb_centre",
        "embedding column 4 of MobileNet-v2-140 (192 px, 8 symmetries, maxima, stage 3) relative to slide, centre",
        "slide SDs",
    ),
    ("cnn_pooled_channel-7_whole", "channel 7 of the fine-tuned network, whole patch", "none"),
    ("cnn_log-odds_all_whole", "log-odds of the fine-tuned network, whole patch", "none"),
    ("mine_mean_grey_whole", "mine mean grey, whole patch", "none"),
    ("age", "age", "none"),
]


@pytest.mark.parametrize(("column", "name", "of_unit"), EXAMPLES, ids=[example[0] for example in EXAMPLES])
def test_names_and_units_of_examples(column, name, of_unit):
    assert plain_name(column) == name
    assert unit(column) == of_unit


def test_names_of_all_columns_are_unique_and_short_and_have_no_code():
    names = [plain_name(column) for column in ALL]
    assert len(set(names)) == len(names)
    lengths = [len(plain_name(column)) for column in NAMES]
    assert max(lengths) <= 75
    assert sum(length <= 60 for length in lengths) > 0.8 * len(lengths)
    assert not [name for name in names if re.search(r"_|\babsorbed\b|-d\d|-s\d|-w\d|\bq\d\d", name)]


def test_every_family_and_statistic_has_search_words():
    assert {family.name for family in FAMILIES} <= set(search_words.STATISTICS)
    for column in NAMES:
        assert search_words.CHANNELS[parse_column(column).channel]
        assert len(synonyms(column)) >= 3, column
        assert len(set(synonyms(column))) == len(synonyms(column))
    described = {family: set(words) for family, words in search_words.STATISTICS.items()}
    for family, statistics in described.items():
        names = [parse_column(column).statistic for column in ALL if column.startswith(f"{family}_")]
        assert not [word for word in statistics if not any(name.startswith(word) for name in names)]


def test_every_network_is_written_as_its_authors_do():
    names = {plain_name(f"embedding_{row.name}-0000_rgb_whole") for row in BACKBONES}
    assert {name.split()[4].rstrip(",") for name in names} >= {
        "EfficientNet-Lite0", "EfficientNet-B4", "ResNet50-v2", "DenseNet121", "ConvNeXt-Tiny", "Inception-ResNet-v2",
        "NASNet-Mobile", "VGG16", "Xception", "MobileNet-v3-Small",
    }  # fmt: skip
    assert len(names) == len(BACKBONES)


@pytest.mark.parametrize(
    ("query", "column"),
    [
        ("nucleus size", "nuclei_area-mean_absorbed_whole"),
        ("nuclear size", "nuclei_major-q90_absorbed_whole"),
        ("Pleomorphism", "nuclei_area-spread_absorbed_whole"),
        ("chromatin texture", "nuclei_grain-mean_absorbed_whole"),
        ("cell density", "nuclei_count_absorbed_whole"),
        ("haematoxylin amount", "stain_mean_haematoxylin_whole"),
        ("hematoxylin amount", "colour_mean_haematoxylin_whole"),
        ("gray entropy", "cooccurrence_entropy-d1-mean_grey_whole"),
        ("color", "colour_mean_red_whole"),
        ("mean nuclear area center", "nuclei_area-mean_absorbed_centre"),
        ("nearest neighbor", "nuclei_gap-mean_absorbed_whole"),
        ("anisotropy", "gabor_anisotropy-w3_grey_whole"),
        ("texture contrast", "cooccurrence_contrast-d1-mean_grey_whole"),
        ("eosinophilia", "colour_mean_eosin_whole"),
        ("hyperchromasia", "nuclei_intensity-mean_absorbed_whole"),
        ("GLCM", "cooccurrence_asm-d1-mean_grey_whole"),
    ],
)
def test_a_search_finds(query, column):
    found = matching_columns(query, NAMES)
    assert column in found
    assert len(found) < len(NAMES) / 2


def test_a_search_for_nucleus_size_finds_measures_of_size_only():
    found = matching_columns("nucleus size", NAMES)
    assert {parse_column(column).statistic.partition("-")[0] for column in found} == {
        "area", "perimeter", "major", "minor",
    }  # fmt: skip
    assert matching_columns("relative slide nucleus size", ALL) == [
        column for column in ALL if re.sub("(-normalised)?-in-slide", "", column) in found and "-in-slide" in column
    ]


def test_an_exact_name_finds_only_its_column():
    for column in NAMES[::50]:
        assert matching_columns(column, NAMES) == [column]
        assert matching_columns(plain_name(column).upper(), NAMES) == [column]


def test_words_must_begin_a_word():
    assert matching_columns("hole", NAMES) == []
    assert matching_columns("  ", NAMES) == []
