"""The registry of heads: its classes, their marker files, and that importing it is cheap."""

import subprocess
import sys
from typing import get_args

import pytest

from histoblend.data.errors import InputError
from histoblend.models.file_checks import SUFFIXES
from histoblend.models.heads.head import Head
from histoblend.models.heads.registry import HEADS, head_class, head_from, new_head
from histoblend.pipelines.config import HeadName, HeadsConfig
from histoblend.reports.sections.explorer import MEASURES


@pytest.mark.parametrize("name", HEADS)
def test_every_row_is_a_head_with_all_class_attributes(name):
    made = new_head(name, 7)
    assert isinstance(made, Head)
    assert made.seed == 7
    assert made.display_name
    assert made.marker.endswith(SUFFIXES)
    assert made.importance in MEASURES
    assert "_" not in name  # a model's name is <head>_<set of columns>


def test_no_two_heads_share_a_marker_file():
    markers = [head_class(name).marker for name in HEADS]
    assert len(set(markers)) == len(markers)


def test_a_folder_without_any_head_is_refused():
    with pytest.raises(InputError, match=r"^m: expected a head's head.skops or head.json; got a.txt, b.txt. Get the"):
        head_from({"b.txt": b"", "a.txt": b""}, "m")


def test_the_configuration_knows_all_registered_heads():
    assert get_args(HeadName) == HeadsConfig().heads == tuple(HEADS)


def test_importing_the_registry_loads_no_library():
    code = "import sys, histoblend.models.heads.registry; print({'numpy', 'sklearn', 'xgboost'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
