"""Runtimes of others: found by their entry point, their models packed as they are."""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from build_requests import request
from bundles import null_bundle
from command_line import edgekit
from plugins import MODEL, PROFILE, add_plugin

import edgekit_profiles
from edgekit.build.delivery import build as build_one
from edgekit.build.pack import Sealed
from edgekit_contract import envelope
from edgekit_contract.compatibility import unmet
from edgekit_contract.errors import Refused
from edgekit_contract.manifest import Manifest
from edgekit_contract.messages import DeviceFacts
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_runtime.golden import GoldenVector, check_golden, read_golden
from edgekit_runtime.plugins import PluginBroken, plugin_for_file
from edgekit_runtime.session import RuntimeMissing, installed_runtimes, open_session

ACME = RuntimeKind("acme")
ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    add_plugin(monkeypatch)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A model, a profile and data."""
    (tmp_path / "net.acme").write_bytes(MODEL)
    (tmp_path / "acme-box.toml").write_text(PROFILE)
    np.savez(tmp_path / "inputs.npz", x=ROWS)
    given = {"outputs/y": 2 * ROWS.sum(axis=1, keepdims=True)}
    np.savez(tmp_path / "both.npz", x=ROWS[:, None], labels=np.arange(10), **given)
    return tmp_path


def build(shelf: Path, *words: object) -> tuple[int, str]:
    answer = edgekit(
        "build",
        shelf / "net.acme",
        "--profile",
        shelf / "acme-box.toml",
        "-o",
        shelf / "out",
        *words,
    )
    return answer.code, answer.out + answer.err


def packed(shelf: Path) -> tuple[Manifest, dict[str, bytes]]:
    """What the bundle says and holds."""
    with zipfile.ZipFile(shelf / "out" / "net-1.0.0-acme-box.ekb") as bundle:
        files = {name: bundle.read(name) for name in bundle.namelist()}
    return envelope.decode(files[envelope.ENVELOPE_PATH]).manifest, files


def golden_of(manifest: Manifest, files: dict[str, bytes]) -> list[GoldenVector]:
    golden = manifest.golden
    return list(read_golden(files[golden.path], golden, manifest.inputs, manifest.outputs))


def test_an_installed_plugin_is_a_runtime_like_any(installed: None, shelf: Path) -> None:
    assert installed_runtimes()[ACME] == "2.1.0"
    assert plugin_for_file(Path("x.acme")) is ACME
    assert plugin_for_file(Path("x.onnx")) is None
    session = open_session(ACME, shelf / "net.acme")
    assert session.execution.used == ("ACME core 0",)
    assert session.run({"x": ROWS[:1]})["y"].tolist() == [12.0]


def test_a_plugin_whose_device_is_absent_is_no_runtime(
    installed: None, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_DEVICE", str(shelf / "nothing"))
    assert ACME not in installed_runtimes()
    with pytest.raises(RuntimeMissing, match="acme is not installed: install its plug-in"):
        open_session(ACME, shelf / "net.acme")


def test_a_runtime_that_nobody_installed_is_missing(shelf: Path) -> None:
    with pytest.raises(RuntimeMissing, match="acme is not installed"):
        open_session(ACME, shelf / "net.acme")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("raise OSError('libacme.so: cannot open')", "OSError: libacme.so: cannot open"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("suffixes = ()", "broken_plugin lacks version, open_model"),
    ],
)
def test_a_broken_plugin_harms_no_other_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    (tmp_path / "broken_plugin.py").write_text(code)
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[edgekit.runtimes]\nacme = broken_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    assert [e.name for e in importlib.metadata.entry_points(group="edgekit.runtimes")] == ["acme"]
    assert ACME not in installed_runtimes()
    assert RuntimeKind.NULL in installed_runtimes()
    with pytest.raises(PluginBroken, match=says):
        open_session(ACME, tmp_path / "x")
    (tmp_path / "net.acme").write_bytes(MODEL)
    (tmp_path / "acme-box.toml").write_text(PROFILE)
    refused, said = build(tmp_path)
    assert refused == 1
    assert f"acme does not run on this machine ({says}" in said


def test_a_plugin_cannot_take_the_name_of_edgekits_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "sly-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sly\nVersion: 1.0\n")
    names = ("null", "onnxruntim", "Bad Name", "../x")
    lines = [f"{name} = sly_plugin" for name in names]
    (about / "entry_points.txt").write_text("\n".join(["[edgekit.runtimes]", *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    assert not [kind for kind in installed_runtimes() if kind.is_plugin]
    assert "sly_plugin" not in sys.modules


def test_a_prebuilt_model_is_packed_with_what_the_plugin_computes(
    installed: None, shelf: Path
) -> None:
    code, said = build(shelf, "--validation", shelf / "inputs.npz")
    assert code == 0, said
    manifest, files = packed(shelf)
    assert (manifest.runtime, manifest.model) == (ACME, "files/model.acme")
    assert manifest.requires.min_runtime_version == "2.0"
    assert files[manifest.model] == MODEL
    assert manifest.golden.source == "validation"
    vectors = golden_of(manifest, files)
    session = open_session(ACME, shelf / "net.acme")
    assert check_golden(session, manifest.golden, vectors) is None
    for command in (("inspect",), ("report",)):
        assert edgekit(*command, next((shelf / "out").iterdir())).code == 0


def test_a_host_that_cannot_run_it_packs_what_was_given(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = build(shelf, "--runtime", "acme")
    assert (code, "give --validation FILE.npz" in said) == (1, True)
    code, said = build(shelf, "--runtime", "acme", "--validation", shelf / "inputs.npz")
    assert (code, "as outputs/NAME" in said) == (1, True)
    code, said = build(shelf, "--runtime", "acme", "--validation", shelf / "both.npz")
    assert code == 0, said
    assert "acme does not run on this machine: golden vectors are as they were given." in said
    manifest, files = packed(shelf)
    assert manifest.golden.source == "given"
    assert [spec.shape for spec in (*manifest.inputs, *manifest.outputs)] == [(1, 4), (1,)]
    vectors = golden_of(manifest, files)
    add_plugin(monkeypatch)
    assert check_golden(open_session(ACME, shelf / "net.acme"), manifest.golden, vectors) is None


def test_a_profile_with_that_runtime_alone_says_what_a_model_is_for(shelf: Path) -> None:
    (shelf / "net.acme").rename(shelf / "net.bin")
    words = ("--profile", shelf / "acme-box.toml", "-o", shelf / "out", "--dry-run")
    answer = edgekit("build", shelf / "net.bin", *words)
    assert answer.code == 0
    assert "acme-box: acme 2.0, 1 threads" in answer.out
    assert "packed as it was given" in answer.out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--runtime", "acme", "--profile", "demo-small"), 1, "demo-small has no acme, only"),
        (("--runtime", "onnxruntime"), 2, "are built, not packed as they are"),
        (("--runtime", "onnxruntim"), 2, "'onnxruntim' is not the name of a runtime"),
    ],
)
def test_a_runtime_that_does_not_do_is_refused(
    shelf: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    found, said = build(shelf, *words)
    assert (found, says in said) == (code, True), said


def test_a_file_that_the_plugin_does_not_load_is_refused(installed: None, shelf: Path) -> None:
    (shelf / "net.acme").write_bytes(b"ELF or so")
    code, said = build(shelf)
    assert (code, "it is no model of ACME's compiler" in said) == (1, True), said
    assert not list((shelf / "out").glob("*"))


@pytest.mark.parametrize("also", ["", "onnxruntime"])
def test_a_prebuilt_model_is_not_emulated_and_that_is_a_refusal(
    installed: None, shelf: Path, also: str
) -> None:
    """Of a device with another runtime, too, which could be emulated."""
    text = PROFILE.replace("x86_64", "aarch64").replace("Haswell", "cortex-a72")
    if also:
        another = (
            f'[[runtimes]]\nkind = "{also}"\nversion = "1.23.2"\npython = "3.11"\nthreads = 1\n'
        )
        text = text.replace("[budget]", f"{another}max_ir = 11\nmax_opset = 23\n[budget]")
    (shelf / "acme-box.toml").write_text(text)
    code, said = build(shelf, "--emulate")
    assert (code, said) == (
        1,
        "edgekit: acme-box cannot be emulated: its models run in a vendor's acme, which no "
        "emulated system has; let a device try the bundle, in its warm-up.\n",
    )
    assert not (shelf / "out").exists()


def test_a_gate_is_shown_a_prebuilt_bundle_before_it_is_written(
    installed: None, shelf: Path
) -> None:
    profile = edgekit_profiles.load(str(shelf / "acme-box.toml"))
    order = request(
        shelf / "net.acme", shelf / "out", profiles=(profile,), validation=str(shelf / "inputs.npz")
    )
    seen = []

    def refuse(profile: Profile, sealed: Sealed) -> None:
        seen.append((profile.name, sealed.filename, list((shelf / "out").iterdir())))
        raise Refused("it does not do.")

    with pytest.raises(Refused, match="it does not do"):
        build_one(order, gate=refuse)
    assert seen == [("acme-box", "net-1.0-acme-box.ekb", [])]
    assert not (shelf / "out").exists()


def test_null_models_are_packed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_bytes(MODEL.removeprefix(b"ACME"))
    profile = tmp_path / "p.toml"
    profile.write_text(PROFILE.replace('"acme"', '"null"').replace('"2.0"', '"1.0"'))
    words = ("--profile", profile, "--runtime", "null", "-o", tmp_path)
    answer = edgekit("build", tmp_path / "net.json", *words)
    assert answer.code == 0, answer.err
    assert (tmp_path / "net-1.0.0-acme-box.ekb").is_file()


def test_a_device_without_the_plugin_lacks_it_in_a_sentence() -> None:
    manifest = null_bundle().manifest
    requires = msgspec.structs.replace(manifest.requires, runtime=ACME)
    wanting = msgspec.structs.replace(manifest, runtime=ACME, requires=requires)
    facts = DeviceFacts(
        profile=manifest.profile, arch="x86_64", cores=1, ram_bytes=1 << 30,
        runtimes={"onnxruntime": "1.32.0"},
    )  # fmt: skip
    assert unmet(wanting, facts) == ["the runtime plug-in acme is not installed"]
    having = msgspec.structs.replace(facts, runtimes={"acme": "2.1.0"})
    assert unmet(wanting, having) == []


def test_a_manifest_may_name_any_plugin_and_no_nonsense() -> None:
    plain = msgspec.to_builtins(null_bundle().manifest)
    plain["runtime"] = plain["requires"]["runtime"] = "acme"
    assert msgspec.convert(plain, Manifest).runtime is ACME
    for nonsense in ("", "ACME", "a" * 40, "x/y", "onnx-runtime", "lite-rt"):
        plain["runtime"] = nonsense
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(plain, Manifest)


def test_missing_is_a_refusal() -> None:
    assert issubclass(RuntimeMissing, Refused)
    assert issubclass(PluginBroken, Refused)
