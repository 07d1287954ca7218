"""Sysroots of this machine's cache, made where they are missing, and profiles to run in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import KEY
from tools import SYSROOTS, need_sysroot

import edgekit_profiles
from edgekit.emulation import Sysroot, sysroot_of
from edgekit_contract.profile import Profile

OLD_RUNTIME = """
name = "{name}"
title = "A device that kept onnxruntime 1.21.0"
platform = "linux"

[cpu]
arch = "aarch64"
core = "{core}"
cores = 4
features = [{features}]

[memory]
ram_mib = 2048

[[runtimes]]
kind = "onnxruntime"
version = "1.21.0"
python = "3.11"
threads = 2
max_ir = 10
max_opset = 22

[budget]
bundle_mib = 64
ram_mib = 512
"""


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(SYSROOTS))
        yield


@pytest.fixture(scope="module")
def pi4(cache: None) -> Profile:
    """Its sysroot is that of most profiles."""
    profile = edgekit_profiles.load("raspberry-pi-4")
    need_sysroot(profile)
    return profile


@pytest.fixture(scope="module")
def sysroot(pi4: Profile) -> Sysroot:
    return sysroot_of(pi4)


@pytest.fixture(scope="module")
def old_profiles(cache: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Profile files of devices with onnxruntime 1.21.0, by core."""
    directory = tmp_path_factory.mktemp("profiles")
    found = {}
    for core, like in (("cortex-a72", "raspberry-pi-4"), ("cortex-a76", "raspberry-pi-5")):
        features = ", ".join(f'"{f}"' for f in edgekit_profiles.load(like).cpu.features)
        path = directory / f"old-{core}.toml"
        path.write_text(OLD_RUNTIME.format(name=f"old-{core}", core=core, features=features))
        need_sysroot(edgekit_profiles.load(str(path)))
        found[core] = path
    return found


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    path = tmp_path / "signer.pub"
    path.write_bytes(KEY.public_pem)
    return path
