"""The head on the network's channels in slide context: when it is fitted, and on which labels."""

import numpy as np
import pandas as pd
import pytest

from histoblend.features.handcrafted.slide_context import slide_context
from histoblend.models.heads.registry import load_head
from histoblend.pipelines.steps.cnn_context import ChannelContext, columns_of, store

ROWS = np.arange(80)


@pytest.fixture
def table():
    """20 patches of each of 6 slides, two slides per fold."""
    slide = np.repeat(np.arange(6), 20)
    labels = np.random.default_rng(0).integers(0, 2, 120)
    return pd.DataFrame({"label": labels, "slide": [f"S{number}" for number in slide], "fold": slide % 3})


def context(table):
    return ChannelContext(table, table["slide"].to_numpy(), seed=0)


def channels(table):
    return np.random.default_rng(1).normal(table["label"].to_numpy()[:, None], 1, (120, 4)).astype(np.float32)


def test_columns_are_channels_and_channels_relative_to_the_slide(table):
    made = channels(table)
    values, names = context(table).values(made[ROWS], ROWS)
    np.testing.assert_array_equal(values[:, :4], made[ROWS])
    expected, _ = slide_context(made[ROWS], table["slide"].to_numpy()[ROWS], names[:4])
    np.testing.assert_array_equal(values[:, 4:], expected)
    assert (names[0], names[4]) == ("cnn_pooled_channel-0_whole", "cnn_pooled-in-slide_channel-0_whole")


def test_labels_of_other_rows_change_nothing(table):
    values, _ = context(table).values(channels(table)[ROWS], ROWS)
    first = context(table).fit(values, ROWS)
    turned = table.assign(label=np.where(table.index >= len(ROWS), 1 - table["label"], table["label"]))
    np.testing.assert_array_equal(first.coef_, context(turned).fit(values, ROWS).coef_)
    # The check can fail: labels of the fitted rows change the head.
    own = table.assign(label=1 - table["label"])
    assert (first.coef_ != context(own).fit(values, ROWS).coef_).any()


def test_the_head_needs_known_slides_that_folds_do_not_split(table):
    assert context(table).possible
    assert not context(table.assign(slide=None)).possible
    assert not context(table.assign(fold=np.arange(120) % 3)).possible
    some = table.assign(slide=table["slide"].where(table["slide"] != "S5"))
    assert context(some).possible


def test_a_stored_head_keeps_its_column_names(table, tmp_path):
    values, names = context(table).values(channels(table)[ROWS], ROWS)
    head = context(table).fit(values, ROWS)
    store(head, names, tmp_path / "context")
    assert columns_of(tmp_path / "context") == names
    np.testing.assert_array_equal(
        load_head(tmp_path / "context").predict_proba(values)[:, 1], head.predict_proba(values)[:, 1]
    )
