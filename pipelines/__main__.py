"""Command line: ``histoblend STEP --config NAME --set key=value``, or ``python -m histoblend.pipelines``."""

from __future__ import annotations

import os
import re
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from histoblend.data.errors import InputError, on_screen
from histoblend.data.workers import count_workers
from histoblend.pipelines.runtime.resources import check_start
from histoblend.pipelines.runtime.signals import stop_on_signals

CONFIG = Annotated[
    Path, typer.Option("--config", help="Shipped configuration (folder, kaggle, pcam, phantom) or TOML file.")
]
SETTINGS = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, over the file. May be repeated. `settings` lists the keys."),
]
DATA = Annotated[str, typer.Option("--data", help="Folder of the data set (data.path).")]
NAME = Annotated[str, typer.Option("--run", help="Name of the run: its folder under --runs (name).")]
RUNS = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]
MISSING = Annotated[str, typer.Option("--missing", help="error|skip: ids without image, images without label.")]
STRICT = Annotated[bool, typer.Option("--strict", help="A patch that cannot be read ends the run.")]
REBUILD = Annotated[bool, typer.Option("--rebuild", help="Replace results made with another configuration.")]
EXPLAIN = Annotated[str, typer.Option("--explain", help="Say what this column is, and draw it on three patches.")]
WORKERS = Annotated[int, typer.Option("--workers", help="Threads; -1 for one per core, -2 for one fewer.")]

#: Commands that compute, and whether they run convolutional networks whatever the configuration says.
NETWORKS = {
    "prepare": False, "audit": False, "features": False, "heads": False, "report": False, "baseline": False,
    "predict": False, "heatmap": False, "embeddings": True, "cnn": True, "ensemble": True,
}  # fmt: skip

app = typer.Typer(
    name="histoblend",
    help="Histoblend: honest baselines for cancer detection in histology patches. Not for diagnosis.\n\n"
    "Every command first brings the steps that it reads up to date, and reuses what did not change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _run(
    step: str,
    config: Path,
    settings: list[str] | None,
    data: str,
    name: str,
    runs: Path,
    missing: str,
    strict: bool,
    rebuild: bool,
    explain: str = "",
) -> None:
    from histoblend.pipelines.commands import baseline, begin, ensemble, one_step
    from histoblend.pipelines.commands import explain as explain_column
    from histoblend.pipelines.config import load_config
    from histoblend.pipelines.plan import plan_run
    from histoblend.pipelines.printed_tables import show_audit
    from histoblend.pipelines.runtime.lock import run_lock
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.tracking import check_tracking

    options = {"data.path": data, "name": name, "data.missing": missing}
    given = [f"{key}={_quoted(value)}" for key, value in options.items() if value]
    given += ["data.strict=true"] if strict else []
    run = plan_run(load_config(config, [*(settings or []), *given]), runs, rebuild=rebuild)
    if step in ("baseline", "ensemble", "report"):
        check_tracking(run.config.track)  # before the run's folder is made
    with foreseen(run.folder), run_lock(run.folder, run.screen.say), closing(run):
        if explain:
            explain_column(run, explain)
        elif step == "baseline":
            baseline(run)
        elif step == "ensemble":
            ensemble(run)
        elif step == "audit":
            begin(run)
            show_audit(run)
        else:
            run.screen.say(f"{step}: {one_step(run, step)}")


def _quoted(text: str) -> str:
    """Text as TOML, so that a folder called ``2020`` or ``a"b`` stays text."""
    import json

    return json.dumps(text, ensure_ascii=False)


def _command(step: str, sentence: str) -> None:
    @app.command(step, help=sentence)
    def command(
        config: CONFIG = Path("phantom"),
        settings: SETTINGS = None,
        data: DATA = "",
        run: NAME = "",
        runs: RUNS = Path("runs"),
        missing: MISSING = "",
        strict: STRICT = False,
        rebuild: REBUILD = False,
    ) -> None:
        _run(step, config, settings, data, run, runs, missing, strict, rebuild)


_command("prepare", "Step 1: decode every patch once, audit, split by slide.")
_command("audit", "Show what step 1 found odd about the patches, and what was done about it.")


@app.command("features", help="Step 2: handcrafted colour, texture and nuclei features.")
def _features(
    config: CONFIG = Path("phantom"),
    settings: SETTINGS = None,
    data: DATA = "",
    run: NAME = "",
    runs: RUNS = Path("runs"),
    missing: MISSING = "",
    strict: STRICT = False,
    rebuild: REBUILD = False,
    explain: EXPLAIN = "",
) -> None:
    _run("features", config, settings, data, run, runs, missing, strict, rebuild, explain)


_command("embeddings", "Step 3: pretrained network embeddings.")
_command("heads", "Step 4: heads on the feature tables, out of fold and on the held-out slides.")
_command("cnn", "Step 5: a fine-tuned network, out of fold and on the held-out slides.")
_command("report", "Step 7: ladder, importances, report.html and bundle.")
_command("baseline", "Steps 1 to 4 and the report, ending with the ladder in the terminal.")
_command("ensemble", "The baseline, a fine-tuned network (step 5) and the ensemble of all (step 6), by nested folds.")


@app.command("data", help="Download a data set into a folder, check it against its published sums and unpack it.")
def _data(
    dataset: Annotated[str, typer.Argument(help="pcam, kaggle, or a zip or tar file that you downloaded.")],
    data: Annotated[str, typer.Option("--data", help="Folder to bring it into.")] = "",
    mirror: Annotated[str, typer.Option("--mirror", help="URL of a folder with PatchCamelyon's nine files.")] = "",
) -> None:
    from histoblend.pipelines.download import fetch
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.runtime.screen import Screen

    if not data:
        raise InputError("a folder must be named for the data set; got none. Give DATA=folder (--data).")
    with foreseen(Path(data)):
        fetch(dataset, Path(data), mirror=mirror, screen=Screen())


@app.command("predict", help="Predict new patches with a bundle: a folder of image files to a table of probabilities.")
def _predict(
    bundle: Annotated[Path, typer.Option("--bundle", help="Folder of the bundle, such as runs/<name>/bundle.")],
    source: Annotated[Path, typer.Option("--in", help="Folder of image files, at any depth.")],
    out: Annotated[Path, typer.Option("--out", help="CSV file to write: id, probability, label, flags.")],
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides",
            help="CSV file with the slide of each patch (id,slide), for models that compare a patch with the rest of "
            "its slide: a slide's patches must be predicted together.",
        ),
    ] = None,
    explain: Annotated[
        list[str] | None, typer.Option("--explain", help="Id of a patch to explain beside OUT. May be repeated.")
    ] = None,
    prevalence: Annotated[
        float, typer.Option("--prevalence", help="Rescale probabilities to this share of positives; labels stay.")
    ] = 0.0,
    model: Annotated[
        str, typer.Option("--model", help="A model of the bundle; else the ensemble, or the best head by AUC.")
    ] = "",
    point: Annotated[str, typer.Option("--point", help="Operating point for labels.")] = "youden",
    workers: WORKERS = -1,
    shard: Annotated[int, typer.Option("--shard", min=1, help="Patches at a time (changes no number).")] = 256,
) -> None:
    from histoblend.pipelines.predict.folder import predict_folder
    from histoblend.pipelines.predict.shards import Options
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.runtime.screen import Screen

    options = Options(model, point, prevalence, count_workers(workers), shard)
    with foreseen(out.parent):
        status = predict_folder(
            bundle, source, out, options=options, slides=slides, explain=explain or [], screen=Screen()
        )
    raise typer.Exit(status)


@app.command("heatmap", help="Predict a whole slide with a bundle: rasters, regions for QuPath, and a viewer.")
def _heatmap(
    bundle: Annotated[Path, typer.Option("--bundle", help="Folder of the bundle, such as runs/<name>/bundle.")] = Path(
        "runs/phantom/bundle"
    ),
    slide: Annotated[
        Path | None, typer.Option("--slide", help="Whole slide that OpenSlide reads; else a phantom slide is drawn.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results; else runs/heatmaps/<slide>.")
    ] = None,
    mpp: Annotated[
        float, typer.Option("--mpp", help="Micrometres a pixel of the slide, where it says none or a wrong one.")
    ] = 0.0,
    patch_mpp: Annotated[
        float, typer.Option("--patch-mpp", help="Micrometres a pixel of the bundle's patches, where it says none.")
    ] = 0.0,
    stride: Annotated[
        int,
        typer.Option(
            "--stride",
            help="From one patch to the next, in pixels of a patch; else 32, so that the centres that labels speak of "
            "tile the tissue.",
        ),
    ] = 0,
    model: Annotated[
        str, typer.Option("--model", help="A model of the bundle; else the ensemble, or the best head by AUC.")
    ] = "",
    point: Annotated[str, typer.Option("--point", help="Operating point for labels.")] = "youden",
    workers: WORKERS = -1,
    shard: Annotated[int, typer.Option("--shard", min=1, help="Patches at a time (changes no number).")] = 256,
) -> None:
    from histoblend.pipelines.predict.phantom_slide import default_slide
    from histoblend.pipelines.predict.shards import Options
    from histoblend.pipelines.predict.slide import Geometry, heatmap
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.runtime.screen import Screen

    screen = Screen()
    options = Options(model, point, workers=count_workers(workers), shard=shard)
    folder = Path("runs/heatmaps")
    with foreseen(out.parent if out else folder):
        chosen = slide or default_slide(folder, bundle, screen)
        target = out or folder / (chosen.stem or chosen.name)
        heatmap(bundle, chosen, target, options=options, geometry=Geometry(mpp, patch_mpp, stride), screen=screen)


@app.command("slide", help="Draw a synthetic whole slide with a planted disc of tumour, to try `heatmap` on.")
def _slide(
    out: Annotated[Path, typer.Option("--out", help="TIFF file to write.")] = Path("phantom.tif"),
    width: Annotated[int, typer.Option("--width", help="Pixels of 0.972 µm.")] = 4096,
    height: Annotated[int, typer.Option("--height", help="Pixels of 0.972 µm.")] = 3072,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, another slide.")] = 0,
) -> None:
    from histoblend.pipelines.predict.phantom_slide import draw_slide
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.runtime.screen import Screen

    with foreseen(out.parent):
        draw_slide(out, Screen(), width=width, height=height, seed=seed)


@app.command("compare", help="Several finished runs on one page: ladders side by side, and paired differences.")
def _compare(
    names: Annotated[list[str], typer.Argument(help="Names of two to seven finished runs.", metavar="RUN...")],
    runs: RUNS = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the page; else runs/compare-<names>.")] = None,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Resamplings of slides behind each interval.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the resampling.")] = 0,
) -> None:
    from histoblend.pipelines.comparison import compare
    from histoblend.pipelines.runtime.resources import foreseen
    from histoblend.pipelines.runtime.screen import Screen

    screen = Screen()
    with foreseen(out or runs):
        screen.say(f"comparison: {compare(names, runs, out=out, draws=draws, seed=seed, screen=screen)}")


@app.command("settings", help="List every key that --set takes: its value in a configuration, and what it is.")
def _settings(config: CONFIG = Path("phantom"), settings: SETTINGS = None) -> None:
    from histoblend.pipelines.config import describe, load_config

    for line in describe(load_config(config, settings or [])):
        typer.echo(line)


def _silence_libraries() -> None:
    """Keep libraries' warnings off the terminal, here and in processes that are started from here.

    They are for programmers. What a user can act on is raised, or said on the screen. Python's own options still count.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"


def with_home(argument: str) -> str:
    """Put the home folder for ``~`` at the beginning of an option's value: shells do so only between spaces."""
    return re.sub(r"(?:^|(?<==))~(?=[/\\]|$)", lambda _: os.path.expanduser("~"), argument, count=1)


def main() -> None:
    """Run the command line; a foreseeable fault is one line on standard error and exit status 2."""
    stop_on_signals()
    _silence_libraries()
    # Native libraries chatter on standard error while they load; what matters is raised as an exception.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.argv[1:] = map(with_home, sys.argv[1:])
    try:
        step = next(iter(sys.argv[1:]), "")
        if step in NETWORKS and "--help" not in sys.argv:
            # Before any library is loaded that crashes or hangs without memory: the parser of options loads one.
            check_start(step, networks=NETWORKS[step])
        app()
    except InputError as error:
        sys.stderr.write(f"error: {on_screen(str(error))}\n")
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has seen enough; Python must not complain again while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(
            f"error: {place}{error.strerror or error}. Finished steps are kept; run again once it is fixed.\n"
        )
        sys.exit(2)
    except Exception:
        import traceback

        traceback.print_exc()
        sys.stderr.write(
            "This is a fault of Histoblend, not yours. Please report it with the lines above, your command, and the "
            "manifest.json of the run's last finished step. Finished steps are kept.\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
