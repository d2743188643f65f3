"""The road from images to a table of numbers: steps in order, each run only when something it depends on changed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError
from histoblend.data.storage.atomic import write_whole
from histoblend.pipelines.run import Run

if TYPE_CHECKING:
    pass


def baseline(run: Run) -> None:
    """Bring every step up to date, show the ladder and log the run where that is configured."""
    from histoblend.pipelines.terminal import show_ladder
    from histoblend.pipelines.tracking import check_tracking, track

    check_tracking(run.config.track)
    folder, _ = run.report
    show_ladder(run)
    run.screen.say(f"report: {folder / 'report.html'}")
    track(run)
    if (run.folder / "6-ensemble").is_dir():
        run.screen.warn(
            "this run has an ensemble, which `baseline` leaves out of report, predictions and bundle. It is kept: "
            "`make report` with the same settings brings it back."
        )


def ensemble(run: Run) -> None:
    """Bring every step up to date, the ensemble included, and show the ladder and what the ensemble gains."""
    from histoblend.pipelines.terminal import show_ensemble, show_ladder
    from histoblend.pipelines.tracking import check_tracking, track

    check_tracking(run.config.track)
    run.combined = True
    folder, _ = run.report
    show_ladder(run)
    show_ensemble(run)
    run.screen.say(f"report: {folder / 'report.html'}")
    track(run)


def one_step(run: Run, name: str) -> Path:
    """Bring one step, and what it reads, up to date; return its folder."""
    steps: dict[str, Callable[[], tuple[Path, dict[str, Any]]]] = {
        "prepare": lambda: run.prepared,
        "features": lambda: run.features,
        "embeddings": lambda: run.embeddings,
        "heads": lambda: run.heads,
        "cnn": lambda: run.cnn,
    }
    # A report shows the ensemble where the run has one.
    run.combined = name == "report" and (run.folder / "6-ensemble").is_dir()
    if name == "cnn":
        from histoblend.pipelines.steps.cnn import check_cnn

        check_cnn(run.config)
    if name == "report":
        from histoblend.pipelines.tracking import check_tracking, track

        check_tracking(run.config.track)
        folder = run.report[0]
        track(run)
        return folder
    return steps[name]()[0]


def explain(run: Run, column: str) -> Path:
    """Say what a handcrafted column is, and draw it on the patches at its 1st, 50th and 99th percentile.

    Returns
    -------
    Path
        Of the PNG picture, in the run folder.
    """
    import numpy as np
    from PIL import Image

    from histoblend.features.handcrafted.explain import explain as explain_column
    from histoblend.pipelines.tables import read_values

    values, names = read_values(run.features[0])
    if column not in names:
        near = difflib.get_close_matches(column, names, 1, 0.5)
        hint = f" Did you mean {near[0]!r}?" if near else " docs/features.md lists all."
        raise InputError(f"--explain must name a handcrafted column; got {column!r}.{hint}")
    order = np.argsort(values[:, names.index(column)], kind="stable")
    rows = [int(order[round(share * (len(order) - 1))]) for share in (0.01, 0.5, 0.99)]
    text, picture = explain_column(column, np.stack([run.patches.pixels[row] for row in rows]))
    path = run.folder / f"explain-{column}.png"
    large = Image.fromarray(picture).resize((3 * picture.shape[1], 3 * picture.shape[0]), Image.Resampling.NEAREST)
    write_whole(path, lambda file: large.save(file, format="PNG"))
    run.screen.say(text)
    run.screen.say(f"picture, at the 1st, 50th and 99th percentile: {path}")
    return path
