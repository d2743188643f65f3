"""The record of parameters of one phantom patch."""

import numpy as np

NO_TUMOUR, TUMOUR_IN_CENTRE, TUMOUR_IN_RING = 0, 1, 2
SCATTERED, FRONT, SHEET, NESTS = 0, 1, 2, 3
AS_DRAWN, BLANK, BLACK = 0, 1, 2
PATCH = np.dtype(
    [
        ("key", "u8"),  # start of the patch's random stream
        ("scanner", "i4"),  # row of MATRICES, WHITES and the other scanner tables in optics.py
        ("override", "i4"),  # AS_DRAWN, BLANK or BLACK
        ("haematoxylin_intensity", "f4"),
        ("eosin_intensity", "f4"),
        ("focus", "f4"),  # sigma of the optical blur, pixels
        ("cells", "f4"),  # share of cell sites that are occupied, 0..1
        ("stroma", "f4"),  # share of the patch that is fibrous, 0..1
        ("fat", "f4"),  # share of the patch that is fat, 0..1
        ("glass", "f4"),  # share of the patch without tissue, 0..1
        ("loose", "f4"),  # gaps between cells, 0..1
        ("large", "f4"),  # share of benign cells that are large and pale (histiocytes, centroblasts), 0..1
        ("large_radius", "f4"),  # nuclear radius of large cells, pixels
        ("blood", "f4"),  # red cells per 1,000 square pixels
        ("fold", "f4"),  # extra thickness along a fold, 0 without a fold
        ("ink", "f4"),  # density of pen ink, 0 without ink
        ("ink_colour", "i4"),  # row of INKS
        ("tumour", "i4"),  # NO_TUMOUR, TUMOUR_IN_CENTRE or TUMOUR_IN_RING
        ("pattern", "i4"),  # SCATTERED, FRONT, SHEET or NESTS
        ("tumour_radius", "f4"),  # mean nuclear radius, pixels
        ("irregularity", "f4"),  # amplitude of the bumps in the outline, as a share of the radius
        ("pale_density", "f4"),  # optical density of haematoxylin in tumour nuclei and large benign nuclei
        ("nucleoli", "f4"),  # probability that a tumour nucleus shows nucleoli, 0..1
        ("infiltrate", "f4"),  # share of lymphocytes kept between tumour cells, 0..1
    ],
    align=True,
)
"""Parameters of a patch."""
