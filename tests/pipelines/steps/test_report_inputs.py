"""What the report knows about a data set: the kind of data set, and data.card."""

import pytest

from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.steps.report_inputs import data_card
from histoblend.reports.sections.data_card import KNOWN_CARDS, DataCard
from tests import ROOT


def card_of(config, *settings):
    return data_card(load_config(ROOT / "configs" / f"{config}.toml", settings).data, 2)


@pytest.mark.parametrize("source", ["kaggle", "pcam", "phantom"])
def test_known_data_sets_need_no_settings(source):
    card = card_of(source)
    assert card.set_aside == 2
    assert (card.source, card.pixel_size) == (KNOWN_CARDS[source].source, KNOWN_CARDS[source].pixel_size)


def test_nothing_is_stated_about_a_folder_unless_its_card_says_it():
    assert card_of("folder") == DataCard(set_aside=2)
    assert card_of("folder", "data.mpp=0.5").pixel_size == "0.5 µm per pixel"
    stated = card_of(
        "folder", "data.mpp=0.5", "data.card.um_per_pixel=0.25", "data.card.tissue=breast", "data.card.stain=H&E"
    )
    assert stated == DataCard(tissue="breast", stain="H&E", um_per_pixel="0.25", set_aside=2)


def test_a_card_replaces_what_is_known_about_a_kind_of_data_set():
    card = card_of("kaggle", "data.card.source=our own slides", "data.card.um_per_pixel=0.5")
    assert (card.source, card.pixel_size) == ("our own slides", "0.5 µm per pixel")
    assert card.stain == "H&E"
