"""The project agrees with itself: versions, extras, entry points, what is tracked and what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import sartor

ROOT = Path(__file__).parents[1]
BINARY = {".png", ".npz", ".onnx", ".gz", ".jpg", ".safetensors"}


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def tracked() -> list[Path]:
    """Return the files that git tracks or would track; without git, those of the source distribution."""
    if shutil.which("git") and (ROOT / ".git").exists():
        argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [ROOT / name for name in names if (ROOT / name).is_file()]
    return [path for folder in ("src", "tests", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        name: Version(version)
        for name, _, version in (line.partition("==") for line in lines if line and line[0] != "#")
    }


def test_versions_agree() -> None:
    assert metadata.version("sartor") == sartor.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{sartor.__version__}]" in changes or "## [Unreleased]" in changes


def test_extras_are_there() -> None:
    extras = project()["optional-dependencies"]
    assert {"onnx", "openvino", "hf", "ray", "search", "bench", "docs", "dev", "all"} <= set(extras)
    every = {part for text in extras["all"] for part in Requirement(text).extras}
    assert every == {"onnx", "openvino", "hf", "ray", "search", "bench"}, "torchvision and timm stay outside `all`"


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    groups = [project()["dependencies"], *project()["optional-dependencies"].values()]
    needed = {one.name: one for group in groups for one in map(Requirement, group) if one.name != "sartor"}
    for name, version in pinned().items():
        if name in needed:
            assert needed[name].specifier.contains(version), f"{name} {version} is not within {needed[name]}"
    untested = {"tensorrt", "nvidia-ml-py", "torchvision", "timm", "properdocs", "properdocs-theme-mkdocs"}
    assert not set(needed) - set(pinned()) - untested


def test_extras_named_in_messages_exist() -> None:
    extras = set(project()["optional-dependencies"])
    for path in (ROOT / "src").rglob("*.py"):
        for name in re.findall(r"sartor\[([a-z]+)\]", path.read_text(encoding="utf-8")):
            assert name in extras, f"{path.name} names the extra {name!r}"


# Written in pieces, so that this file does not contain what it forbids.
PLACES = re.compile("/" + "(?:home|root|work|Users)/|/tmp" + r"/\w|\bfile:" + "//|[A-Z]:" + r"\\\\Users")
INDEXES = re.compile("index-" + "url|--find" + "-links|pytorch" + r"\.org/whl|torch==[\d.]+\+" + "cpu")


def test_no_file_names_a_machine() -> None:
    for path in tracked():
        if path.suffix not in BINARY:
            text = path.read_text(encoding="utf-8")
            found = PLACES.findall(text) + INDEXES.findall(text)
            assert not found, f"{path.relative_to(ROOT)} has {found}"


def test_no_tracked_file_is_large() -> None:
    assert not [path.name for path in tracked() if path.stat().st_size > 1_000_000]


@pytest.mark.parametrize("name", [".ci/run", "scripts/check", "scripts/setup"])
def test_scripts_run(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    shell = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#!").split()[-1]
    assert subprocess.run([Path(shell).name, "-n", path], check=False).returncode == 0


def test_make_has_its_targets() -> None:
    argv = ["make", "-n", "-B", "venv", "demo", "test", "check", "docs", "clean"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "runs/demo" in done.stdout


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert project()["license"] == "Apache-2.0"
