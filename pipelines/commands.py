"""The commands: bring steps of a run up to date and show the results."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored
from histoblend.data.sources.registry import source_kind
from histoblend.data.storage.atomic import write_atomically
from histoblend.pipelines.config import Config
from histoblend.pipelines.forecast import show_time_left
from histoblend.pipelines.plan import CURVES, ENSEMBLE_ONLY, LEARNING, LEARNING_NETWORK
from histoblend.pipelines.printed_tables import best_words, show_ensemble, show_ladder
from histoblend.pipelines.results import patches_of, read_ladder
from histoblend.pipelines.run import Run
from histoblend.pipelines.run_files import CURVE
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.bundle import say_bundle
from histoblend.pipelines.steps.cnn import check_cnn
from histoblend.pipelines.steps.embeddings import check_embeddings
from histoblend.pipelines.steps.outputs import publish
from histoblend.pipelines.steps.patches import split_warnings
from histoblend.pipelines.steps.predictions import say_predictions
from histoblend.pipelines.tables import chosen_families
from histoblend.pipelines.tracking import check_tracking, track

#: The last steps of a complete run.
FINAL = ("report", "bundle", "predictions")


def baseline(run: Run) -> None:
    """Bring every step up to date, show the ladder, and log the run if configured."""
    run.leave_out(ENSEMBLE_ONLY)
    finish(run)


def ensemble(run: Run) -> None:
    """Bring every step up to date, including the ensemble, and show the ladder and the gain of the ensemble."""
    run.leave_out(())
    finish(run)


def generalise(run: Run) -> None:
    """Bring every step up to date, including learning curves, and the ensemble if the run has one."""
    run.leave_out(() if _has(run, "ensemble") else ENSEMBLE_ONLY - CURVES)
    finish(run)


def report(run: Run) -> None:
    """Bring the report up to date. It includes learning curves and the ensemble if the run has them."""
    if _has(run, "ensemble"):
        run.leave_out(())
    else:
        run.leave_out(ENSEMBLE_ONLY - (CURVES if _has(run, LEARNING) else set()))
    finish(run)


def _has(run: Run, name: str) -> bool:
    """Whether a step was finished by an earlier command."""
    return (run.folder / run.plan[name].folder).is_dir()


def finish(run: Run) -> None:
    """Bring report, bundle and final predictions up to date, publish and show them, and log the run if configured.

    The last line printed is the result of the run.
    """
    check_tracking(run.config.track)
    begin(run, *FINAL)
    for name in FINAL:
        if run.has(name):
            run.step(name)
    publish(run)
    say_predictions(run)
    show_ladder(run)
    if run.has("ensemble"):
        show_ensemble(run)
    say_bundle(run)
    track(run)
    warn_of_left_out(run)
    run.screen.say(f"{best_words(read_ladder(run))}; report: {run.step('report').folder / 'report.html'}")


def warn_of_left_out(run: Run) -> None:
    """Warn if results of an earlier command are not part of this one."""
    if not run.has("ensemble") and _has(run, "ensemble"):
        run.screen.warn(
            "this run has an ensemble. `baseline` leaves it out of report, predictions and bundle, but does not delete "
            "it: `make report` with the same settings includes it again."
        )
    # The step also finishes if too few slides are known, but without curves.
    if not run.has(LEARNING) and (run.folder / run.plan[LEARNING].folder / CURVE).is_file():
        run.screen.warn("the report leaves out this run's learning curves: `make report` includes them again.")


def one_step(run: Run, name: str) -> Path:
    """Bring one step and its inputs up to date, and return its folder."""
    if name == "report":
        report(run)
    else:
        run.leave_out(() if name == "cnn" else ENSEMBLE_ONLY)
        begin(run, name)
    return run.step(name).folder


def check_data_folder(config: Config) -> None:
    """Check that the folder of the data set is given, exists and is not empty.

    Raises
    ------
    InputError
        It is not. The message says how to get the data set.
    """
    source, path = config.data.source, config.data.path
    if "path" not in source_kind(source).options:
        return
    download = f" `make data DATASET={source} DATA=folder` downloads one." if source in ("pcam", "kaggle") else ""
    if not path:
        raise InputError(
            f"data.path must name the folder of a {source} data set; it is empty. Give DATA=folder (--data folder)."
            + download
        )
    folder = Path(path)
    if not folder.exists():
        beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, beside, 1)
        hint = f" Did you mean {folder.parent / near[0]}?" if near else download
        raise InputError(
            f"{folder}: expected the folder of the data set; it does not exist. Check DATA=… (--data).{hint}"
        )
    if folder.is_dir() and all(map(ignored, os.listdir(folder))):
        raise InputError(
            f"{folder}: expected the folder of a {source} data set; it is empty. Check DATA=… (--data).{download}"
        )


def introduction(run: Run, configuration: str) -> str:
    """Say what a run reads and where its results are.

    Parameters
    ----------
    run : Run
    configuration : str
        Name or file of the configuration, as given by the user.
    """
    data = run.config.data
    what = f"{data.n:,} synthetic patches, not your data" if data.source == "phantom" else f"patches in {data.path}"
    return f"Configuration {configuration}: {what}; results in {run.folder}{os.sep}"


def begin(run: Run, *targets: str) -> None:
    """Check the settings before any long computation, bring the patches up to date, and warn about a leaking split.

    From then on, the screen shows the time left until these steps are up to date.
    """
    checks = {"embeddings": check_embeddings}
    checks |= {name: check_cnn for name in ("cnn", LEARNING_NETWORK) if run.has(name)}
    for name, check in checks.items():
        # A finished step was checked before; with other settings it will be refused.
        if run.rebuild or not (run.folder / run.plan[name].folder).is_dir():
            check(run.config)
    if "colour" in run.config.heads.features and "colour" not in chosen_families(run.config):
        raise InputError(
            "heads.features contains 'colour', but features.families leaves that family out. "
            "Add the family, or set other columns: --set 'heads.features=[\"handcrafted\"]'."
        )
    show_time_left(run, *targets)
    notes = run.step("prepare").manifest["notes"]
    show_time_left(run, *targets)  # which steps are needed is known only now
    for warning in split_warnings(patches_of(run).table, notes):
        run.screen.warn(warning)


def explain(run: Run, column: str) -> Path:
    """Explain a handcrafted column, and draw it on the patches at its 1st, 50th and 99th percentile.

    Parameters
    ----------
    run : Run
    column : str
        Name or plain name of a column, or words that only one column has, such as synonyms.

    Returns
    -------
    Path
        The PNG picture in the run folder.
    """
    import numpy as np
    from PIL import Image

    from histoblend.features.handcrafted.explain import explain as explain_column
    from histoblend.features.handcrafted.plain_names import plain_name, unit
    from histoblend.pipelines.tables import read_values

    begin(run, "features")
    values, names = read_values(run.step("features").folder)
    column = _column_named(column, names, run.screen)
    order = np.argsort(values[:, names.index(column)], kind="stable")
    rows = [int(order[round(share * (len(order) - 1))]) for share in (0.01, 0.5, 0.99)]
    text, picture = explain_column(column, np.stack([patches_of(run).pixels[row] for row in rows]))
    path = run.folder / f"explain-{column}.png"
    large = Image.fromarray(picture).resize((3 * picture.shape[1], 3 * picture.shape[0]), Image.Resampling.NEAREST)
    write_atomically(path, lambda file: large.save(file, format="PNG"))
    run.screen.say(f"{plain_name(column)} (unit: {unit(column)})")
    for line in text.splitlines():  # a message is one line
        run.screen.say(line)
    run.screen.say(f"picture, at the 1st, 50th and 99th percentile: {path}")
    return path


def _column_named(words: str, names: list[str], screen: Screen) -> str:
    """Return the column that a name, plain name or synonym means. List them and raise InputError if there are more."""
    from histoblend.features.handcrafted.plain_names import matching_columns, plain_name

    matches = matching_columns(words, names)
    if len(matches) == 1:
        return matches[0]
    if matches:
        for name in matches:
            screen.say(f"  {name}: {plain_name(name)}")
        raise InputError(f"--explain must name one column; {words!r} matches the {len(matches)} above.")
    near = difflib.get_close_matches(words, [*names, *map(plain_name, names)], 1, 0.5)
    hint = f" Did you mean {near[0]!r}?" if near else " docs/features.md lists all columns."
    raise InputError(f"--explain must name a handcrafted column; got {words!r}.{hint}")
