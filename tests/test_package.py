"""The package declares what it imports, pins what it declares and ships the files it reads."""

import ast
import re
import sys
import tomllib
from itertools import chain
from pathlib import PurePath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

import hfd_jax
from tests.conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
LAZY = {"clu", "tensorflow", "jax2tf"}  # for summaries and SavedModels; jax2tf imports TensorFlow
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
# Modules whose distribution has another name.
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}


def normalised(requirements):
    """The names of the requirements that apply to Linux x86_64, the platform of constraints.txt."""
    found = [Requirement(line) for line in requirements]
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate(LINUX)}


def lines_of(path):
    """The lines of a requirements file, without comments."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def imports():
    """Third-party module ("jax2tf" by itself) -> [(file that imports it, whether inside a function)]."""
    found = {}
    for path in sorted((ROOT / "hfd_jax").rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        lazy = {inner for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module, *(alias.name for alias in node.names if alias.name == "jax2tf")]
            else:
                continue
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"hfd_jax"}:
                found.setdefault(name, []).append((str(path.relative_to(ROOT)), node in lazy))
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_requirements_files_install_declared_extras_only(path):
    lines = lines_of(path)
    assert len(lines) == 1
    extras = re.fullmatch(r"-e \.\[([\w,-]+)\]", lines[0])
    assert extras and set(extras[1].split(",")) <= set(EXTRAS)


def test_every_declared_package_is_pinned():
    pinned = lines_of(ROOT / "constraints.txt")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    declared = normalised([*PROJECT["dependencies"], *EXTRAS["tensorboard"], *EXTRAS["dev"]])
    assert "tensorflow-cpu" in declared
    assert declared - normalised(pinned) == set()
    assert len(pinned) == len(normalised(pinned)), "a package is pinned twice"


def test_pinned_versions_satisfy_the_declared_ranges():
    pinned = {
        canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines_of(ROOT / "constraints.txt")
    }
    declared = [Requirement(line) for line in chain(PROJECT["dependencies"], *EXTRAS.values())]
    names = {r.name: pinned[canonicalize_name(r.name)] for r in declared if canonicalize_name(r.name) in pinned}
    assert [
        f"{r} pinned to {names[r.name]}" for r in declared if r.name in names and names[r.name] not in r.specifier
    ] == []
    assert len(names) > 20


def test_every_import_is_a_core_dependency():
    core = normalised(PROJECT["dependencies"])
    found = imports()
    assert {"jax", "flax", "numpy", "orbax", "rasterio"} <= set(found)
    undeclared = {
        name: files for name, files in found.items() if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in core
    }
    assert set(undeclared) == LAZY, undeclared


def test_what_the_packages_import_without_declaring_it_is_a_core_dependency():
    """With TensorFlow installed, as in CI, nothing would be missing."""
    assert "flatbuffers" in normalised(PROJECT["dependencies"]), "jax.export serialises with it"
    assert "importlib-resources" in normalised(PROJECT["dependencies"]), "tensorflow-datasets imports it"


def test_optional_imports_are_lazy_and_in_the_tensorboard_extra():
    found = imports()
    assert set(found) >= LAZY
    assert [file for module in sorted(LAZY) for file, lazy in found[module] if not lazy] == []
    assert normalised(EXTRAS["tensorboard"]) >= {"clu", "tensorflow-cpu"}
    assert not normalised(PROJECT["dependencies"]) & normalised(EXTRAS["tensorboard"])


def test_every_file_beside_the_code_is_shipped():
    patterns = SETUPTOOLS["package-data"]["*"]
    files = [path for path in (ROOT / "hfd_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    beside = [path for path in files if path.suffix != ".py"]
    assert [str(path.relative_to(ROOT)) for path in beside if not any(path.match(p) for p in patterns)] == []
    assert [p for p in patterns if not any(path.match(p) for path in beside)] == [], "a pattern matches nothing"
    assert [str(path.relative_to(ROOT)) for path in beside if not (path.parent / "__init__.py").exists()] == []


def test_only_hfd_jax_is_packaged_and_all_of_it():
    found = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hfd_jax").rglob("*.py")}
    assert {PurePath(*name.split(".")) for name in found} == folders
    assert {name.split(".")[0] for name in found} == {"hfd_jax"}


def test_version_and_licence():
    assert hfd_jax.__version__ == PROJECT["version"]
    assert f'__version__ = "{PROJECT["version"]}"' in (ROOT / "hfd_jax/__init__.py").read_text(), (
        "used if not installed"
    )
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]
