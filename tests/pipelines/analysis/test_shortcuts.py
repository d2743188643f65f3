import numpy as np
import pandas as pd

from histoblend.pipelines.analysis.shortcuts import read_shortcuts
from histoblend.pipelines.run_files import SHORTCUTS
from tests.pipelines.stub_run import StubRun


def test_kinds_of_which_no_group_can_be_recognised_are_not_reported(tmp_path):
    table = pd.DataFrame({"kind": ["slide", "centre", "slide", "centre"], "recognised": [0.5, np.nan, np.nan, np.nan]})
    run = StubRun(None, {"shortcuts": tmp_path})
    assert read_shortcuts(run) is None
    table.to_csv(tmp_path / SHORTCUTS, index=False)
    assert read_shortcuts(run)["kind"].tolist() == ["slide", "slide"]
    table.assign(recognised=np.nan).to_csv(tmp_path / SHORTCUTS, index=False)
    assert read_shortcuts(run) is None
