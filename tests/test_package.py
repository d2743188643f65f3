"""The package as it is installed: one name, everything that it needs at run time, and configurations known by name."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.version import Version

from tests import ROOT
from tests.pipelines.predict.small_installation import pins

CONFIGURATIONS = ("folder", "kaggle", "pcam", "phantom")


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
        "Shipped configurations: folder, kaggle, pcam, phantom. Did you mean CONFIG=kaggle (--config kaggle)?\n"
    )


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
    for versions in files.values():
        assert versions.items() <= (files["requirements-dev.txt"] | files["requirements-dask.txt"]).items()


def test_a_newer_python_gets_the_newest_libraries():
    """Python 3.11 must not hold back libraries that have dropped it."""
    old, new = (pinned("requirements.txt", python, "linux") for python in ("3.11", "3.13"))
    assert {"numpy", "scipy", "xgboost-cpu"} <= {name for name in old if new[name] > old[name]}
    assert all(new[name] >= version for name, version in old.items())
