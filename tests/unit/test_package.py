"""What says which version this is agrees, and the package holds what an installed library needs."""

import re
import subprocess
import sys
import tomllib
import zipfile

import darkroom
import pytest
import yaml
from conftest import REPOSITORY


def test_every_place_says_the_same_version():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"]
    newest = re.search(r"^## (\S+?),? ", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)[1]
    assert cited == newest == darkroom.__version__


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(REPOSITORY)], check=True)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_the_library_its_rubrics_and_the_gallery(wheel):
    assert wheel.name == f"darkroom-{darkroom.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("config/rubrics", "resources/gallery"):
        files = {f"darkroom/_home/{folder}/{path.name}" for path in (REPOSITORY / folder).iterdir()}
        assert files and files <= names
    library = REPOSITORY / "scripts"
    assert {str(p.relative_to(library)) for p in library.glob("darkroom/**/*.py")} <= names
    assert "make_images.py" not in names


def test_its_dependencies_are_in_the_lock():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lock = {line.partition("==")[0].lower() for line in (REPOSITORY / "envs/cpu.lock").read_text().split()}
    assert {re.match(r"[\w-]+", name)[0] for name in project["dependencies"]} | {"hatchling"} <= lock
