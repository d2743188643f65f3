"""Centres: from a table, as a test set, and of CAMELYON17-WILDS; tables that do not fit are refused in one line."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.sources.centres import check_centres, hold_out_centre, mapped_centres
from histoblend.data.sources.wilds import WildsSource, content
from histoblend.data.splits import assign_splits, base_groups

TABLE = pd.DataFrame({"patch_id": ["a", "b", "c", "d"], "slide": ["S1", "S1", "S2", None]}).astype("string")


def centres(tmp_path, text, missing="error", table=TABLE):
    path = tmp_path / "centres.csv"
    path.write_text(text, encoding="utf-8")
    return mapped_centres(table, path, missing)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,centre\na,x\nb,x\nc.tif,y\nd,y\n", "xxyy"),
        ("Patch_ID;Hospital\na;x\na;x\na.tif;x\nb;x\nc;y\nd;y\n", "xxyy"),
        ("id,slide,scanner\nd,S9,x\nc,S9,y\nb,S9,x\na,S9,x\n", "xxyx"),
    ],
    ids=["ids", "other headers, repeated rows", "ids count before slides"],
)
def test_the_centre_of_each_patch_is_looked_up(tmp_path, text, expected):
    assert "".join(centres(tmp_path, text)) == expected


def test_slides_are_looked_up_and_unknown_rows_can_be_skipped(tmp_path):
    text = "wsi,center\nS1,0\nS2,1\nS7,1\nS2,\n"
    assert centres(tmp_path, text, "skip").fillna("?").tolist() == ["0", "0", "1", "?"]
    assert centres(tmp_path, text.replace("S7,1\n", ""), table=TABLE[:3]).tolist() == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,centre\nS1,x\nS2,y\n", r"expected a centre for every patch; got none for 1 of 4 \(first: 'd'"),
        ("id,centre\na,x\nb,x\nc,unknown\nd,y\n", r"got none for 1 of 4 \(first: 'c', slide S2\)"),
        ("id,centre\na,x\nb,x\nc,y\nd,y\na,y\n", r"an id must have one centre; got two for 'a' \(row 6\)"),
        ("slide,centre\nS1,x\nS1,y\nS2,y\n", r"a slide must have one centre; got two for 'S1' \(row 3\)"),
        (
            "id,centre\na,x\nb,x\nc,y\nd,y\ne,y\n",
            r"expected ids of these patches; got 1 that no patch has \(first: 'e'",
        ),
        ("slide,centre\nS8,x\nS9,y\n", r"expected slides of these patches; got 2 .*Fix the file\.$"),
        ("id,centre\na,x\nb,x\nc,x\nd,x\n", r"expected two or more centres; got 'x'"),
        ("id,centre\n", r"expected a centre for every patch; got none for 4 of 4"),
        ("centre\nx\ny\n", r"expected columns slide,centre or id,centre; got only centre"),
        ("slide,place\nS1,x\n", r"expected columns centre; got slide,place"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        centres(tmp_path, text)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "centres.csv"))


def test_a_centre_becomes_the_test_set_and_slides_have_one_centre():
    table = TABLE.assign(centre=pd.array(["x", "x", "y", None], "string"))
    assert hold_out_centre(table[:3], "y")["official"].tolist() == ["train", "train", "test"]
    with pytest.raises(InputError, match="needs the centre of every patch; 1 have none"):
        hold_out_centre(table, "y")
    for known, centre, message in [
        (table, "z", "got 'z', but known are x, y"),
        (TABLE, "x", "but known are none; name them"),
    ]:
        with pytest.raises(InputError, match=f"split.test_centre must be one of two or more centres; .*{message}"):
            hold_out_centre(known, centre)
    check_centres(table)
    with pytest.raises(InputError, match="a slide must have one centre; got 'x' and 'y' for slide 'S1'"):
        check_centres(table.assign(centre=["x", "y", "y", "y"]))


@pytest.fixture
def wilds(tmp_path):
    """A very small CAMELYON17-WILDS: 12 patches of 6 slides and 3 centres, in the published layout."""
    rows = []
    for number in range(12):
        patient, node, x = f"{20 * (number // 4):03d}", number // 2 % 2 + 1, 3000 + 32 * number
        rows.append((patient, node, x, 5000, number % 2, number // 2, number // 4, int(number == 3)))
        folder = tmp_path / "patches" / f"patient_{patient}_node_{node}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((96, 96, 4), (number, 100, 200, 255), np.uint8)  # the published files have an alpha channel
        Image.fromarray(pixels).save(folder / f"patch_patient_{patient}_node_{node}_x_{x}_y_5000.png")
    names = ["patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "metadata.csv")
    return tmp_path


def test_camelyon17_wilds_is_read_with_centres_and_official_split(wilds):
    before = list(content(wilds))
    source = WildsSource(wilds)
    pixels, reasons = source.read(3, 9)
    assert not reasons
    assert pixels[:, 5, 5].tolist() == [[number, 100, 200] for number in range(3, 9)]
    assert source.table["label"].tolist() == [0, 1] * 6
    assert source.table["slide"].iloc[[0, 3, 11]].tolist() == [
        "patient_000_node_1", "patient_000_node_2", "patient_040_node_2"
    ]  # fmt: skip
    assert "".join(source.table["centre"]) == "000011112222"
    assert source.table["official"].tolist() == ["train"] * 4 + ["valid"] * 4 + ["test"] * 4
    assert source.notes == {"centres": {"0": 4, "1": 4, "2": 4}}
    next(wilds.glob("patches/*/*.png")).write_bytes(b"")
    assert list(content(wilds)) != before


def test_slides_of_one_patient_are_never_separated(wilds):
    table = WildsSource(wilds).table
    groups = base_groups(table)
    assert groups.tolist() == [f"patient_{patient}" for patient in ("000", "020", "040") for _ in range(4)]
    assert table["slide"].groupby(groups).nunique().tolist() == [2, 2, 2]
    # More patients, without the official split: the split is drawn.
    many = pd.concat([table.drop(columns="official").assign(patient=f"p{i}", patch_id=f"{i}-" + table["patch_id"])
                      for i in range(12)], ignore_index=True)  # fmt: skip
    many["slide"] = many["patient"] + many["slide"]
    split = assign_splits(many, test_share=0.2, folds=3, seed=0)
    assert (split.groupby("patient")[["split", "fold"]].nunique() == 1).all(axis=None)
    assert split["slide"].nunique() == 72


def test_a_part_of_camelyon17_wilds_is_read_and_other_folders_are_refused(wilds):
    metadata = pd.read_csv(wilds / "metadata.csv", dtype=str)
    metadata[metadata["center"] != "2"].to_csv(wilds / "metadata.csv", index=False)
    with pytest.raises(InputError, match=r"4 images have no label .*--missing=skip"):
        WildsSource(wilds)
    source = WildsSource(wilds, missing="skip")
    assert "official" not in source.table
    assert len(source.table) == 8
    assert len(source.skipped) == 4
    metadata.assign(center="").to_csv(wilds / "metadata.csv", index=False)
    with pytest.raises(InputError, match="every row needs a centre; got none in row 2"):
        WildsSource(wilds)
    pd.concat([metadata, metadata[:1]]).to_csv(wilds / "metadata.csv", index=False)
    with pytest.raises(InputError, match=r"a patch must have one row; got 'patient_000_node_1/.* again in row 14"):
        WildsSource(wilds)
    with pytest.raises(InputError, match=r"expected CAMELYON17-WILDS with metadata.csv and patches/"):
        WildsSource(wilds / "patches")
