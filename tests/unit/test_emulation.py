"""Which CPU stands for which, which profiles can be emulated; layers are whole or absent."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bundles import null_bundle
from command_line import edgekit

import edgekit_profiles
from edgekit.emulation import CannotEmulate, Emulator, NotSetUp, layers, obstacle, sysroot_of
from edgekit.emulation.cores import kernel_files, stand_in
from edgekit.emulation.debian import suite_for
from edgekit.emulation.machine import find_qemu
from edgekit_contract.errors import Misused, Refused
from edgekit_contract.profile import Arch, Cpu, read_features

QEMU_7_2 = "a64fx cortex-a35 cortex-a53 cortex-a57 cortex-a72 cortex-a76 max neoverse-n1".split()
DOT_PRODUCTS = ("asimd", "crc32", "atomics", "fphp", "asimdhp", "asimdrdm", "asimddp")


def cpu(core: str, *features: str, cores: int = 4) -> Cpu:
    return Cpu(arch=Arch.AARCH64, core=core, cores=cores, features=features)


@pytest.mark.parametrize(
    ("given", "core"),
    [
        (cpu("cortex-a72", "asimd", "crc32"), "cortex-a72"),
        (cpu("cortex-a78ae", *DOT_PRODUCTS), "cortex-a76"),
        (cpu("cortex-a78ae", *DOT_PRODUCTS[:-1]), "cortex-a53"),
        (cpu("max", *DOT_PRODUCTS, "sve", "i8mm"), "cortex-a76"),
        (cpu("any"), "cortex-a53"),
        (cpu("a64fx", "asimd"), "cortex-a53"),
    ],
)
def test_stand_in_has_no_feature_that_the_profile_lacks(given: Cpu, core: str) -> None:
    assert stand_in(given, QEMU_7_2) == core


def test_kernel_files_say_what_the_profile_and_the_registers_say() -> None:
    files = kernel_files(cpu("cortex-a72", "asimd", "crc32", cores=2), "cortex-a72")
    assert read_features(files["proc/cpuinfo"]) == ("asimd", "crc32")
    assert files["proc/cpuinfo"].count("CPU part\t: 0xd08") == 2
    assert files["sys/devices/system/cpu/online"] == "0-1\n"
    one = kernel_files(cpu("any", cores=1), "cortex-a53")
    assert one["sys/devices/system/cpu/possible"] == "0\n"
    assert "aes" not in one["proc/cpuinfo"]


def test_every_shipped_profile_is_emulated_or_says_why_not() -> None:
    found = {name: obstacle(edgekit_profiles.load(name)) for name in edgekit_profiles.names()}
    assert {name for name, why in found.items() if why is not None} == {
        "android-arm64", "demo-small", "linux-x86-64",
    }  # fmt: skip
    assert found["android-arm64"] == "no wheels are made for android"


def test_python_that_debian_never_had_is_stood_for_by_the_next() -> None:
    pythons = {python: suite_for(python).python for python in ("3.10", "3.11", "3.12", "3.13")}
    assert pythons == {"3.10": "3.11", "3.11": "3.11", "3.12": "3.13", "3.13": "3.13"}


def test_profile_that_cannot_be_emulated_is_told_in_a_sentence(tmp_path: Path) -> None:
    text = edgekit_profiles.text("raspberry-pi-4").decode()
    path = tmp_path / "old-pi.toml"
    path.write_text(text.replace('"aarch64"', '"armv7l"'))
    with pytest.raises(CannotEmulate, match="there is no wheel of onnxruntime"):
        sysroot_of(edgekit_profiles.load(str(path)))
    with pytest.raises(CannotEmulate, match="android-arm64 cannot be emulated: no wheels"):
        Emulator([edgekit_profiles.load("android-arm64")])


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_sysroot_that_was_not_made_is_told_with_the_command_that_makes_it(
    no_cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotSetUp, match=r"run edgekit emulation setup --profile raspberry-pi-5"):
        sysroot_of(edgekit_profiles.load("raspberry-pi-5"))
    assert not no_cache.exists()


def test_missing_qemu_is_told_with_the_package_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    find_qemu.cache_clear()
    with pytest.raises(Misused, match="apt-get install qemu-user-static"):
        find_qemu()


def test_profile_without_emulate_is_wrong_use(tmp_path: Path) -> None:
    path = null_bundle().write(tmp_path / "tiny.ekb")
    (tmp_path / "k.pub").write_text("")
    answer = edgekit("verify", path, "--trust", tmp_path / "k.pub", "--profile", "raspberry-pi-4")
    assert answer.code == 2
    assert "--profile goes with --emulate" in answer.err


def test_layer_that_fails_half_way_leaves_nothing(no_cache: Path) -> None:
    path = layers.layer("thing", ["contents"])

    def fail(directory: Path) -> None:
        (directory / "half").write_text("made")
        raise Refused("the network is gone.")

    with pytest.raises(Refused):
        layers.make(path, fail)
    assert [entry for entry in path.parent.iterdir() if entry.suffix != ".lock"] == []


def test_layer_is_made_once_by_all_who_want_it_at_a_time(no_cache: Path) -> None:
    path, begun = layers.layer("thing", ["contents"]), threading.Barrier(3)

    def fill(directory: Path) -> None:
        time.sleep(0.2)  # the others arrive meanwhile
        (directory / "file").write_text(threading.current_thread().name)

    def make(_: int) -> bool:
        begun.wait(10)
        return layers.make(path, fill)

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(make, range(3)))
    assert sorted(made) == [False, False, True]
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix != ".lock"] == [path.name]
    assert (path / "file").exists()
    assert not layers.make(path, fill)


def test_layers_of_other_contents_have_other_names(no_cache: Path) -> None:
    named = [layers.layer("x", contents) for contents in (["ab"], ["a", "b"], ["b", "a"], [b"ab"])]
    assert len(set(named)) == 3
    assert named[0] == named[3]


def test_setup_of_a_profile_that_cannot_be_emulated_makes_nothing(no_cache: Path) -> None:
    answer = edgekit("emulation", "setup", "--profile", "android-arm64")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert not no_cache.exists()


def test_own_layer_is_named_by_the_code(no_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.emulation import wheels

    before = wheels.own_layer()
    assert before == wheels.own_layer()
    monkeypatch.setattr(wheels, "_own_code", lambda: iter([b"other code"]))
    assert wheels.own_layer() != before


def test_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(Misused, match="set EDGEKIT_CACHE to another directory"):
        layers.make(layers.layer("x", ["y"]), lambda directory: None)


def test_installed_edgekit_is_packed_into_the_wheel_that_it_came_from(tmp_path: Path) -> None:
    """Tried with another distribution of pure Python: this one is a checkout's."""
    from edgekit.emulation import wheels

    installed = importlib.metadata.distribution("click")
    wheel = wheels._packed_again(installed, tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*pip, f"--target={tmp_path / 'site'}", wheel], check=True, timeout=120)
    again = importlib.metadata.Distribution.at(next((tmp_path / "site").glob("*.dist-info")))
    assert again.version == installed.version
    modules = [file for file in installed.files or () if file.suffix == ".py"]
    assert len(modules) > 5
    for file in modules:
        assert (tmp_path / "site" / str(file)).read_bytes() == file.read_binary()
