"""Command line: ``histoblend STEP --config NAME --set key=value``, or ``python -m histoblend.pipelines``."""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import re
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from histoblend.data.errors import InputError, escape_controls
from histoblend.data.workers import count_workers
from histoblend.pipelines.runtime.resources import check_start
from histoblend.pipelines.runtime.signals import stop_on_signals

#: Commands of a run: what each does, and whether it always runs convolutional networks.
COMMANDS = {
    "baseline": ("Steps 1 to 4 and 7: models without fine-tuning, and the report.", False),
    "ensemble": ("Steps 1 to 7: the baseline, a fine-tuned network and the ensemble.", True),
    "prepare": ("Step 1: decode patches, audit them, and split them by slide.", False),
    "audit": ("Show what the audit of step 1 found and did.", False),
    "features": ("Step 2: handcrafted colour, texture and nuclei features.", False),
    "embeddings": ("Step 3: embeddings of a pretrained network.", True),
    "heads": ("Step 4: heads on features and embeddings, with their scores.", False),
    "cnn": ("Step 5: a fine-tuned network, with its scores.", True),
    "generalise": ("The baseline, and what more slides or more labelled patches would bring.", False),
    "report": ("Step 7: ladder, importances, report.html and bundle.", False),
}
#: Commands that end with the report.
FINISHING = ("baseline", "ensemble", "generalise", "report")
#: Packages that a run or a comparison always needs and requirements-predict.txt leaves out.
TRAINING = ("keras", "matplotlib")
#: Commands in the order of the help.
ORDER = ("data", "weights", *COMMANDS, "compare", "predict", "heatmap", "slide", "settings")

CONFIG = Annotated[
    Path, typer.Option("--config", help="Shipped configuration (folder, kaggle, pcam, phantom, wilds) or a TOML file.")
]
SETTINGS = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, overrides the file. May be repeated. `settings` lists the keys."),
]
PRESET = Annotated[str, typer.Option("--preset", help="fast, default, or best (slow): see docs/results.md.")]
RUNS = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
BUNDLE = typer.Option("--bundle", help="Folder of the bundle, such as runs/<name>/bundle.")
MODEL = Annotated[
    str,
    typer.Option(
        "--model",
        help="A model of the bundle, or fast: the cheapest with an AUC within 0.005 of the best. Default: the "
        "ensemble, or the head with the best AUC.",
    ),
]
POINT = Annotated[
    str,
    typer.Option("--point", help="Operating point for labels: youden, sensitivity-0.95, specificity-0.95 or best-f1."),
]
WORKERS = Annotated[int, typer.Option("--workers", help="Threads; -1 for one per core, -2 for one fewer.")]
SHARD = Annotated[int, typer.Option("--shard", min=1, help="Patches per block (does not change results).")]

app = typer.Typer(
    name="histoblend",
    help="Histoblend: honest baselines for cancer detection in histology patches. Not for diagnosis.\n\n"
    "Every command first runs the steps that it needs, and reuses results that are up to date.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _run_command(step: str, sentence: str) -> None:
    """Add a command that works on a run. `features` alone has --explain."""

    def command(
        config: CONFIG = Path("phantom"),
        preset: PRESET = "default",
        settings: SETTINGS = None,
        data: Annotated[str, typer.Option("--data", help="Folder of the data set (data.path).")] = "",
        run: Annotated[str, typer.Option("--run", help="Name of the run: its folder under --runs (name).")] = "",
        runs: RUNS = Path("runs"),
        missing: Annotated[
            str, typer.Option("--missing", help="error or skip: ids without image, images without label.")
        ] = "",
        strict: Annotated[bool, typer.Option("--strict", help="Stop at a patch that cannot be read.")] = False,
        rebuild: Annotated[
            bool, typer.Option("--rebuild", help="Replace results made with another configuration.")
        ] = False,
        explain: Annotated[
            str,
            typer.Option(
                "--explain", help="Describe this column (a plain name works too), and draw it on three patches."
            ),
        ] = "",
    ) -> None:
        from histoblend.pipelines import commands
        from histoblend.pipelines.config_files import load_config
        from histoblend.pipelines.plan import plan_run
        from histoblend.pipelines.printed_tables import show_audit
        from histoblend.pipelines.runtime.lock import run_lock
        from histoblend.pipelines.runtime.resources import report_shortages
        from histoblend.pipelines.tracking import check_tracking

        given = [("data.path", "DATA", data), ("name", "RUN", run), ("data.missing", "MISSING", missing)]
        options = {
            f"{key}={_quoted(value)}": f"{name}={value} (--{name.lower()})" for key, name, value in given if value
        }
        options |= {"data.strict=true": "STRICT=1 (--strict)"} if strict else {}
        planned = plan_run(load_config(config, settings or [], options, preset), runs, rebuild=rebuild)
        commands.check_data_folder(planned.config)
        if step in FINISHING:
            check_tracking(planned.config.track)  # before the run's folder is made
        with report_shortages(planned.folder), run_lock(planned.folder, planned.screen.say), closing(planned):
            planned.screen.say(commands.introduction(planned, str(config)))
            if explain:
                commands.explain(planned, explain)
            elif step in FINISHING:
                getattr(commands, step)(planned)
            elif step == "audit":
                commands.begin(planned)
                show_audit(planned)
            else:
                planned.screen.say(f"{step}: {commands.one_step(planned, step)}")

    if step != "features":
        # Typer does not evaluate the annotations of a signature that was set.
        signature = inspect.signature(command, eval_str=True)
        kept = [option for name, option in signature.parameters.items() if name != "explain"]
        command.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    app.command(step, help=sentence)(command)


def _quoted(text: str) -> str:
    """Text as TOML, so that a folder named ``2020`` or ``a"b`` stays text."""
    return json.dumps(text, ensure_ascii=False)


for _step, (_sentence, _) in COMMANDS.items():
    _run_command(_step, _sentence)


@app.command("data", help="Download a data set, check it, and unpack it.")
def _data(
    dataset: Annotated[str, typer.Argument(help="pcam, kaggle, or a zip or tar file that you have downloaded.")],
    data: Annotated[str, typer.Option("--data", help="Folder for the data set.")] = "",
    mirror: Annotated[str, typer.Option("--mirror", help="URL of a folder with PatchCamelyon's nine files.")] = "",
) -> None:
    from histoblend.pipelines.download import fetch
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    if not data:
        raise InputError("expected a folder for the data set; got none. Give DATA=folder (--data).")
    with report_shortages(Path(data)):
        fetch(dataset, Path(data), mirror=mirror, screen=Screen())


@app.command("weights", help="Download a network's published weights.")
def _weights(
    backbone: Annotated[str, typer.Argument(help="A name in docs/backbones.md.")],
) -> None:
    from histoblend.pipelines.download import fetch_weights
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    with report_shortages(Path.home()):
        fetch_weights(backbone, Screen())


@app.command("predict", help="Predict image files with a bundle; writes a CSV file.")
def _predict(
    bundle: Annotated[Path | None, BUNDLE] = None,
    source: Annotated[Path | None, typer.Option("--in", help="Folder of image files, subfolders included.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="CSV file to write: id, probability, label, flags.")] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides",
            help="CSV file with the slide of each patch (id,slide), for models that compare a patch with the rest of "
            "its slide. Predict all patches of a slide together.",
        ),
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option("--explain", help="Id of a patch to explain beside OUT. May be repeated."),
    ] = None,
    prevalence: Annotated[
        float,
        typer.Option("--prevalence", help="Rescale probabilities to this share of positives; not labels."),
    ] = 0.0,
    model: MODEL = "",
    point: POINT = "youden",
    workers: WORKERS = -1,
    shard: SHARD = 256,
) -> None:
    from histoblend.pipelines.predict.folder import predict_folder
    from histoblend.pipelines.predict.shards import Options
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    given = {"BUNDLE (--bundle)": bundle, "IN (--in)": source, "OUT (--out)": out}
    if bundle is None or source is None or out is None:
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise InputError(
            f"predict needs a bundle, a folder of images and a CSV file to write; missing: {missing}. "
            f"Example: make predict BUNDLE={_newest_bundle()} IN=images OUT=predictions.csv"
        )
    options = Options(model, point, prevalence, count_workers(workers), shard)
    with report_shortages(out.parent):
        status = predict_folder(
            bundle, source, out, options=options, slides=slides, explain=explain or [], screen=Screen()
        )
    raise typer.Exit(status)


def _newest_bundle() -> str:
    """Folder of the last bundle made in runs/, for a message; a placeholder if there is none."""
    found = sorted(Path("runs").glob("*/bundle/bundle.json"), key=lambda file: file.stat().st_mtime)
    return found[-1].parent.as_posix() if found else "runs/<name>/bundle"


@app.command("heatmap", help="Predict a whole slide with a bundle; writes maps and a viewer.")
def _heatmap(
    bundle: Annotated[Path, BUNDLE] = Path("runs/phantom/bundle"),
    slide: Annotated[
        Path | None, typer.Option("--slide", help="Whole slide that OpenSlide reads. Default: a phantom slide.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the results. Default: runs/heatmaps/<slide>.")
    ] = None,
    mpp: Annotated[
        float, typer.Option("--mpp", help="Micrometres per pixel of the slide, if its file states none or a wrong one.")
    ] = 0.0,
    patch_mpp: Annotated[
        float,
        typer.Option("--patch-mpp", help="Micrometres per pixel of the patches, if the bundle has none."),
    ] = 0.0,
    stride: Annotated[
        int,
        typer.Option(
            "--stride",
            help="Distance between patches, in pixels of a patch. Default: 32, so that the labelled centres cover the "
            "tissue without overlap.",
        ),
    ] = 0,
    model: MODEL = "",
    point: POINT = "youden",
    workers: WORKERS = -1,
    shard: SHARD = 256,
) -> None:
    from histoblend.pipelines.predict.phantom_slide import default_slide
    from histoblend.pipelines.predict.shards import Options
    from histoblend.pipelines.predict.slide import Geometry, heatmap
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    screen = Screen()
    options = Options(model, point, workers=count_workers(workers), shard=shard)
    folder = Path("runs/heatmaps")
    with report_shortages(out.parent if out else folder):
        chosen = slide or default_slide(folder, bundle, screen)
        target = out or folder / (chosen.stem or chosen.name)
        heatmap(bundle, chosen, target, options=options, geometry=Geometry(mpp, patch_mpp, stride), screen=screen)


@app.command("slide", help="Draw a synthetic whole slide to try `heatmap` on.")
def _slide(
    out: Annotated[Path, typer.Option("--out", help="TIFF file to write.")] = Path("phantom.tif"),
    width: Annotated[int, typer.Option("--width", help="In pixels of 0.972 µm.")] = 4096,
    height: Annotated[int, typer.Option("--height", help="In pixels of 0.972 µm.")] = 3072,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the drawing.")] = 0,
) -> None:
    from histoblend.pipelines.predict.phantom_slide import draw_slide
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    with report_shortages(out.parent):
        draw_slide(out, Screen(), width=width, height=height, seed=seed)


@app.command("compare", help="Compare finished runs on one page.")
def _compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of two to seven finished runs.", metavar="RUN...")
    ] = None,
    runs: RUNS = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: runs/compare-<names>.")] = None,
    draws: Annotated[int, typer.Option("--draws", min=100, help="Bootstrap draws of slides for each interval.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    from histoblend.pipelines.comparison import compare
    from histoblend.pipelines.runtime.resources import report_shortages
    from histoblend.pipelines.runtime.screen import Screen

    screen = Screen()
    with report_shortages(out or runs):
        screen.say(f"comparison: {compare(names or [], runs, out=out, draws=draws, seed=seed, screen=screen)}")


@app.command("settings", help="List the keys of --set with values and meanings.")
def _settings(config: CONFIG = Path("phantom"), preset: PRESET = "default", settings: SETTINGS = None) -> None:
    from histoblend.pipelines.config import describe
    from histoblend.pipelines.config_files import load_config

    for line in describe(load_config(config, settings or [], preset=preset)):
        typer.echo(line)


app.registered_commands.sort(key=lambda command: ORDER.index(command.name or ""))


def _silence_libraries() -> None:
    """Keep libraries' warnings off the terminal, in this process and in those that it starts.

    They are for programmers. What a user can act on is raised or printed. Python's own options still count.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"
        # TensorFlow warns if functions are traced often for few calls, as with short trainings, each of a new network.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)


def with_home(argument: str) -> str:
    """Expand ``~`` at the beginning of an option's value, as shells do only after a space."""
    return re.sub(r"(?:^|(?<==))~(?=[/\\]|$)", lambda _: os.path.expanduser("~"), argument, count=1)


def not_installed(step: str, packages: list[str]) -> str:
    """Say which packages a command lacks, and what to install."""
    return (
        f"{step} needs {' and '.join(packages)}; not installed. requirements-predict.txt is enough for predict and "
        "heatmap only. Install everything: pip install -r requirements.txt."
    )


def main() -> None:
    """Run the command line. An error that the user can fix is one line on standard error and exit status 2."""
    stop_on_signals()
    _silence_libraries()
    # TensorFlow logs to standard error while it loads; what matters is raised as an exception.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.argv[1:] = map(with_home, sys.argv[1:])
    step = next(iter(sys.argv[1:]), "histoblend")
    try:
        # Commands on bundles load as much as `heads`.
        _, networks = COMMANDS.get(step, ("", False))
        if step in {*COMMANDS, "predict", "heatmap"} and "--help" not in sys.argv:
            # Without memory, libraries crash or hang while they load; checking options already loads some.
            check_start(step, networks=networks)
        missing = [name for name in TRAINING if importlib.util.find_spec(name) is None]
        if missing and step in {*COMMANDS, "compare"} and "--help" not in sys.argv:
            raise InputError(not_installed(step, missing))
        app()
    except InputError as error:
        sys.stderr.write(f"error: {escape_controls(str(error))}\n")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has stopped reading. Python must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(
            f"error: {file}{error.strerror or error}. Finished steps are kept. Fix this, then run again.\n"
        )
        sys.exit(2)
    except Exception as error:
        module = (isinstance(error, ModuleNotFoundError) and error.name) or "histoblend"
        if not module.startswith("histoblend"):
            sys.stderr.write(f"error: {not_installed(step, [module.partition('.')[0]])}\n")
            sys.exit(2)
        import traceback

        traceback.print_exc()
        sys.stderr.write(
            "This is a bug in Histoblend. Please report it with the lines above, your command, and the manifest.json "
            "of the run's last finished step. Finished steps are kept.\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
