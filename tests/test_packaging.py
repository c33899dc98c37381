"""What is installed: the pinned versions, the wheel, and the container."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = ("requirements.txt", "tests/requirements.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


# --- pinned versions ---------------------------------------------------------------------------


def pins(file):
    """Return the pinned version of each package, and the set of those that need it."""
    lines = re.findall(r"^([\w-]+)==(\S+)(?: ; [^#]*)? +# via (.*)$", read(file), re.M)
    return {name: (version, set(via.split(", "))) for name, version, via in lines}


def wanted(file):
    """Return what pyproject.toml asks for with the extras that the command of this file names."""
    (extras,) = re.findall(
        rf"'-e \.\[(.*)\]' \| uv pip compile - -o {file}\n", read("CONTRIBUTING.md")
    )
    optional = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [
        text for extra in extras.split(",") for text in optional[extra]
    ]
    return {canonicalize_name(found.name): found for found in map(Requirement, texts)}


@pytest.mark.parametrize("file", FILES)
def test_each_dependency_is_pinned_within_its_range_and_no_other(file):
    pinned, ranges = pins(file), wanted(file)
    direct = {name for name, (_, via) in pinned.items() if "cytomad-lib" in via}
    assert direct == set(ranges)
    outside = {n: pinned[n][0] for n, r in ranges.items() if not r.specifier.contains(pinned[n][0])}
    assert not outside
    known = {*pinned, "cytomad-lib", "-c (workspace)"}  # the last: [tool.uv] of pyproject.toml
    assert all(via <= known for _, via in pinned.values())


@pytest.mark.parametrize("file", FILES)
def test_each_line_is_a_pin_or_the_kit_itself(file):
    lines = [line for line in read(file).splitlines() if not line.startswith("#")]
    assert lines[0] == "-e ." and len(lines) == 1 + len(pins(file))  # no address of a registry


def test_the_tests_run_on_the_versions_that_everybody_gets():
    ours, theirs = pins(FILES[0]), pins(FILES[1])
    assert {name: theirs[name][0] for name in ours} == {
        name: found[0] for name, found in ours.items()
    }


# --- the wheel ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cytomad_lib", source / "cytomad_lib", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-c", BUILD, folder], cwd=source, check=True, capture_output=True
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel):
    """The wheel's own folder, and how to run its command where there is nothing else."""
    target = wheel.parent / "installed"
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", target]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)

    def run(folder, *words):
        return subprocess.run(
            [target / "bin" / "cytomad", *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
        )

    return target, run


def test_the_wheel_holds_every_tracked_file_of_the_package_and_no_other(installed):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    target, _ = installed
    listed = subprocess.run(
        ["git", "ls-files", "cytomad_lib"], cwd=ROOT, capture_output=True, text=True
    )
    there = {
        p.relative_to(target).as_posix() for p in (target / "cytomad_lib").rglob("*") if p.is_file()
    }
    assert there == set(listed.stdout.split())


def test_the_wheels_command_works_where_there_is_no_repository(installed, tmp_path):
    _, run = installed
    words = ("--image-size", "16", "--train", "1", "--valid", "0", "--test", "0")
    made = run(tmp_path, "simulate", "--out", "data", *words)
    assert made.returncode == 0, made.stderr
    checked = run(tmp_path, "check", "lung")  # which only a repository has
    assert checked.returncode == 1 and "no demonstration datasets" in checked.stderr, checked


# --- the container -----------------------------------------------------------------------------


def test_the_containers_install_by_the_commands_of_the_readme():
    """The first of them has been run before any test runs."""
    run, test = (
        text.split(" && ") for text in re.findall(r"```\n(python3 .*)\n```", read("README.md"))
    )
    dockerfile = read(".devcontainer/Dockerfile")
    assert re.findall("^RUN (.*)$", dockerfile, re.M) == [" && ".join(run[:2])]
    steps = json.loads(read(".devcontainer/devcontainer.json"))
    assert steps["postCreateCommand"] == " && ".join(test[:2])
