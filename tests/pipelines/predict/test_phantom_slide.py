"""A phantom slide is drawn where no slide is given, and replaces no other file."""

import pytest

from histoblend.data.errors import InputError
from histoblend.models.bundle import INDEX
from histoblend.pipelines.predict.phantom_slide import default_slide, draw_slide
from histoblend.pipelines.runtime.screen import Screen


def test_without_a_slide_one_is_drawn_once_there_is_a_bundle(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected a bundle; there is none. Make one \(`make baseline`"):
        default_slide(tmp_path, tmp_path, Screen())
    drawn, bundle = [], tmp_path / "bundle"
    bundle.mkdir()
    (bundle / INDEX).touch()
    monkeypatch.setattr(
        "histoblend.pipelines.predict.phantom_slide.draw_slide", lambda path, screen: drawn.append(path)
    )
    assert default_slide(tmp_path, bundle, Screen()) == tmp_path / "phantom-slide.tif"
    (tmp_path / "phantom-slide.tif").write_text("drawn before")
    default_slide(tmp_path, bundle, Screen())
    assert drawn == [tmp_path / "phantom-slide.tif"]
    with pytest.raises(InputError, match="expected the name of a TIFF file; got a folder"):
        draw_slide(tmp_path, Screen())


def test_a_phantom_slide_replaces_no_other_file(tmp_path):
    other, drawn = tmp_path / "real.svs", tmp_path / "phantom.tif"
    other.write_bytes(b"a slide")
    with pytest.raises(InputError, match="expected a new file, or an earlier phantom slide to replace; got another"):
        draw_slide(other, Screen(), width=1024, height=1024)
    assert other.read_bytes() == b"a slide"
    draw_slide(drawn, Screen(), width=1024, height=1024)
    before = drawn.read_bytes()
    draw_slide(drawn, Screen(), width=1024, height=1024, seed=2)
    assert drawn.read_bytes() != before
