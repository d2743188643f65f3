"""Image files under a folder: endings, links, files of operating systems, and our own results among them."""

import json

import pytest

from histoblend.data.sources.image_files import NOT_FOLLOWED, image_files

STEP = {"step": "heads", "config": {}, "seed": 0, "inputs": {}, "rows": 1, "files": {}, "notes": {}}
UNFINISHED = {"step": "heads", "config": {}, "seed": 0, "inputs": {}, "code": "", "libraries": {}}
EXPLAINED = {"id": "a", "file": "a.png", "probability": 0.5, "label": 1, "predicted_by": "x", "members": {}}


def put(folder, *names, content="x"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("ending", ["tif", "TIF", "Tiff", "PNG", "JPEG", "WebP", "bMp"])
def test_endings_match_in_any_case(tmp_path, ending):
    put(tmp_path, f"deep/er/a.{ending}")
    assert image_files(tmp_path).files == {f"deep/er/a.{ending}"}


def test_files_of_operating_systems_are_not_images(tmp_path):
    put(tmp_path, "a.png", "._a.png", ".ipynb_checkpoints/a-checkpoint.png", "x/.ipynb_checkpoints/b.png")
    put(tmp_path, "__MACOSX/a.png", "@eaDir/a.png", "x/Thumbs.db", "x/desktop.ini", "x/.DS_Store", "x/~$a.png")
    images = image_files(tmp_path)
    assert (images.files, images.skipped) == ({"a.png"}, {})


def test_links_to_folders_are_followed_once(tmp_path):
    put(tmp_path / "far" / "tumour", "a.png", "deep/b.png")
    put(tmp_path / "far" / ".store", "c.png")
    put(tmp_path / "in", "normal/d.png", ".cache/e.png")
    links = {
        "tumour": tmp_path / "far" / "tumour",
        "again": tmp_path / "far" / "tumour" / "deep",  # inside "tumour", which is listed later
        "stored": tmp_path / "far" / ".store",
        "cached": tmp_path / "in" / ".cache",  # a hidden folder is read only through a link
        "normal/loop": tmp_path / "in",
        "up": tmp_path,
        "same": tmp_path / "in" / "normal",
    }
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    images = image_files(tmp_path / "in")
    assert images.files == {"again/b.png", "stored/c.png", "cached/e.png", "normal/d.png"}
    assert images.skipped == dict.fromkeys(["same", "tumour", "up", "normal/loop"], NOT_FOLLOWED)


def test_class_folders_that_are_links_are_read(tmp_path):
    put(tmp_path / "far", "t/a.png", "n/b.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tumour").symlink_to(tmp_path / "far" / "t")
    (tmp_path / "in" / "normal").symlink_to(tmp_path / "far" / "n")
    images = image_files(tmp_path / "in")
    assert (images.files, images.skipped) == ({"tumour/a.png", "normal/b.png"}, {})


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("bundle.json", {"format": 3, "files": {}, "digest": ""}, "a bundle"),
        ("manifest.json", STEP, "results of a step"),
        ("key.json", UNFINISHED, "an unfinished step"),
        ("1-patches/manifest.json", STEP, "a run"),
        ("1-patches.partial/key.json", UNFINISHED, "a run"),
    ],
)
def test_folders_of_results_are_left_out(tmp_path, name, content, what):
    put(tmp_path, f"runs/mine/{name}", content=content)
    put(tmp_path, "a.png", "runs/mine/figures/roc.png", "runs/mine/notes.txt")
    images = image_files(tmp_path)
    assert (images.files, images.skipped, images.results) == ({"a.png"}, {}, {"runs/mine/": what})


def test_a_heat_map_is_left_out(tmp_path):
    put(tmp_path, "heat/summary.json", "heat/tiles.csv", "heat/viewer.html", "heat/probability.png", "a.png")
    images = image_files(tmp_path)
    assert (images.files, images.results) == ({"a.png"}, {"heat/": "a heat map"})


def test_tables_and_explanations_of_predict_are_left_out(tmp_path):
    put(tmp_path, "x/a.png")
    put(tmp_path, "x/out.CSV", "x/out", content="id,probability,label,flags\na,0.5,1,\n")
    put(tmp_path, "x/out.CSV.skipped.csv", content="file,reason\n")
    put(tmp_path, "x/explain-a.json", content=EXPLAINED)
    put(tmp_path, "x/explain-a.png")
    images = image_files(tmp_path)
    assert (images.files, images.skipped) == ({"x/a.png"}, {})
    assert set(images.results) == {f"x/{name}" for name in (
        "out.CSV", "out", "out.CSV.skipped.csv", "explain-a.json", "explain-a.png"
    )}  # fmt: skip


def test_files_that_only_resemble_results_are_read(tmp_path):
    put(tmp_path, "x/manifest.json", content={"name": "my data"})
    put(tmp_path, "y/bundle.json", content="[")
    put(tmp_path, "x/a.png", "y/b.png", "explain-c.png", "y/summary.json")
    put(tmp_path, "x/slides.csv", content="id,slide\n")
    images = image_files(tmp_path)
    assert (images.files, images.results) == ({"x/a.png", "y/b.png", "explain-c.png"}, {})
    assert set(images.skipped) == {"x/manifest.json", "y/bundle.json", "y/summary.json", "x/slides.csv"}
