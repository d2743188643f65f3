"""A made-up heat map with a hole, touching corners, a cell cut off by the edge and one exactly at the threshold."""

import numpy as np

from histoblend.reports.heatmap.heat import HeatMap

VALUES = np.array(
    [
        [0.9, 0.9, 0.9, np.nan, 0.1, 0.2],
        [0.9, 0.2, 0.9, 0.1, 0.95, 0.2],
        [0.9, 0.9, 0.8, 0.6, np.nan, 0.3],
        [0.1, 0.1, 0.1, 0.7, 0.1, 0.5],
        [np.nan, 0.1, 0.1, 0.1, 0.0, 1.0],
    ],
    np.float32,
)


def make_heat(values=VALUES, threshold=0.5, **options):
    """Cells of 32 px at 0.972 µm on a slide of 0.486 µm. Half of the last column and row is beyond the edge."""
    rows, columns = values.shape
    plane = (columns * 32 - 16, rows * 32 - 16)
    defaults = {
        "values": values,
        "positive": np.nan_to_num(values) >= threshold,
        "threshold": threshold,
        "stride": 32,
        "plane": plane,
        "spacing": (0.972, 0.972),
        "to_slide": (2.0, 2.0),
        "slide": (2 * plane[0], 2 * plane[1]),
    }
    return HeatMap(**defaults | options)


def make_summary(**options):
    """Content of summary.json."""
    defaults = {
        "slide": {"name": "a.svs", "width": 352, "height": 288, "um_per_pixel": [0.486, 0.486], "vendor": "aperio"},
        "bundle": {"run": "mine", "source": "kaggle", "made": "2026-11-26", "digest": "0123456789abcdef" * 4},
        "model": "logistic_context",
        "slide_context": True,
        "auc": 0.93,
        "point": "youden",
        "threshold": 0.5,
        "tissue_mm2": 0.03,
        "predicted_mm2": 0.024,
        "positive_mm2": 0.012,
        "positive_share": 0.5,
        "regions": 4,
        "largest_region_mm2": 0.009,
        "tiles": 27,
        "tiles_unread": 0,
        "regions_unread": 0,
        "flags": {"blank": 0.0, "pen": 0.25, "out-of-distribution": 0.4},
        "patch_px": 96,
        "patch_um_per_pixel": [0.972, 0.972],
        "stride_px": 32,
        "stride_um": [31.104, 31.104],
    }
    return defaults | options
