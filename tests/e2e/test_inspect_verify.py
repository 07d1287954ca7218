"""`edgekit inspect`, `verify`, `keys` and `profiles`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bundles import ECDSA_KEY, KEY, OTHER_KEY, SmallBundle, null_bundle, onnx_bundle
from command_line import edgekit

from edgekit_contract.manifest import Manifest
from edgekit_contract.profile import Arch, RuntimeKind
from edgekit_runtime.golden import GoldenVector, golden_bytes


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    path = tmp_path / "signer.pub"
    path.write_bytes(KEY.public_pem)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return onnx_bundle().write(tmp_path / "tiny-1.0-demo-small.ekb")


def requiring(bundle: SmallBundle, **needs: object) -> SmallBundle:
    return bundle.changed(requires=msgspec.structs.replace(bundle.manifest.requires, **needs))


def test_inspect_shows_the_manifest_and_says_that_nothing_is_verified(bundle: Path) -> None:
    answer = edgekit("inspect", bundle)
    assert answer.code == 0
    for shown in (
        "tiny@1.0 for demo-small", KEY.keyid, "onnxruntime 1.20.0 or later", "[batch x 3]: scores",
        "files/model.onnx", "files/labels.txt", "top-1 kept", "model.onnx (", "as-is",
    ):  # fmt: skip
        assert shown in answer.out
    assert "not verified" in answer.err


def test_inspect_json_holds_the_whole_manifest(bundle: Path) -> None:
    answer = edgekit("inspect", bundle, "--json")
    shown = json.loads(answer.out)
    assert answer.err == ""
    assert shown["verified"] is False
    assert shown["signatures"] == [KEY.keyid]
    assert msgspec.convert(shown["manifest"], Manifest) == onnx_bundle().manifest


def test_inspect_does_not_ask_who_signed(tmp_path: Path) -> None:
    path = null_bundle().write(tmp_path / "tiny.ekb", OTHER_KEY)
    assert edgekit("inspect", path).code == 0


def test_inspect_lets_no_escape_sequence_out(tmp_path: Path) -> None:
    small = null_bundle()
    origin = msgspec.structs.replace(
        small.manifest.provenance, recipe="\x1b]0;owned\x07[red]x[/red]"
    )
    path = small.changed(provenance=origin).write(tmp_path / "tiny.ekb")
    answer = edgekit("inspect", path)
    assert "\x1b" not in answer.out
    assert "\\x1b]0;owned\\x07[red]x[/red]" in answer.out


@pytest.mark.parametrize("make", [null_bundle, onnx_bundle], ids=["null", "onnx"])
def test_verify_proves_signature_files_and_golden_vectors(
    tmp_path: Path, trusted: Path, make: object
) -> None:
    path = make().write(tmp_path / "tiny.ekb")  # type: ignore[operator]
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 0
    assert "2 reproduced in" in answer.out
    shown = json.loads(edgekit("verify", path, "--trust", trusted, "--json").out)
    assert shown["verified"] is True
    assert shown["golden"] == "reproduced"
    assert shown["keyid"] == KEY.keyid


def test_verify_says_that_it_ran_on_the_cpu_what_is_for_another_provider(
    tmp_path: Path, trusted: Path
) -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    path = onnx_bundle().changed(providers=providers).write(tmp_path / "tiny.ekb")
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 0
    assert ", on the CPU, not in CUDAExecutionProvider" in answer.out


def test_verify_accepts_a_signature_by_any_key_that_is_trusted(
    tmp_path: Path, trusted: Path
) -> None:
    other = tmp_path / "ecdsa.pub"
    other.write_bytes(ECDSA_KEY.public_pem)
    path = null_bundle().write(tmp_path / "tiny.ekb", ECDSA_KEY)
    answer = edgekit("verify", path, "--trust", trusted, "--trust", other, "--json")
    assert json.loads(answer.out)["keyid"] == ECDSA_KEY.keyid


def test_verify_refuses_a_stranger_s_bundle(tmp_path: Path, trusted: Path) -> None:
    path = null_bundle().write(tmp_path / "tiny.ekb", OTHER_KEY)
    answer = edgekit("verify", path, "--trust", trusted)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == (
        "edgekit: tiny.ekb rejected: no signature by a trusted key "
        f"(it is signed by {OTHER_KEY.keyid[:16]}).\n"
    )


def test_verify_refuses_a_changed_byte(bundle: Path, trusted: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[-600] ^= 1
    bundle.write_bytes(data)
    answer = edgekit("verify", bundle, "--trust", trusted)
    assert answer.code == 1
    assert answer.err.count("\n") == 1


def test_verify_refuses_a_model_that_does_not_do_what_it_did_at_build(
    tmp_path: Path, trusted: Path
) -> None:
    small = onnx_bundle()
    x = np.array([[1, 2]], np.float32)
    lie = golden_bytes(
        [GoldenVector(inputs={"x": x}, outputs={"y": np.ones((1, 3), np.float32)})] * 2
    )
    path = small.with_files(small.files | {"files/golden.npz": lie}).write(tmp_path / "tiny.ekb")
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 1
    assert "golden vector 0, output 'y'" in answer.err


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ({"arch": (Arch.ARMV7,)}, "it needs armv7l"),
        ({"features": ("amx_tile_9",)}, "lacks amx_tile_9"),
        ({"min_runtime_version": "99.0"}, "is older than 99.0"),
    ],
)
def test_verify_says_that_the_golden_vectors_were_not_run(
    tmp_path: Path, trusted: Path, needs: dict[str, object], says: str
) -> None:
    path = requiring(null_bundle(), **needs).write(tmp_path / "tiny.ekb")
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 0
    assert "NOT RUN" in answer.out
    assert says in answer.out
    shown = json.loads(edgekit("verify", path, "--trust", trusted, "--json").out)
    assert shown["golden"] == "not-run"
    assert len(shown["obstacles"]) == 1


def test_verify_refuses_a_model_that_does_not_load(tmp_path: Path, trusted: Path) -> None:
    small = onnx_bundle()
    broken = small.with_files(small.files | {"files/model.onnx": b"\0broken"})
    path = broken.write(tmp_path / "tiny.ekb")
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 1
    assert "model.onnx does not load" in answer.err


def test_wrong_use_is_exit_code_2(tmp_path: Path, bundle: Path, trusted: Path) -> None:
    assert edgekit("verify", bundle).code == 2
    for words in (
        ("inspect", tmp_path / "none.ekb"),
        ("inspect", tmp_path),
        ("verify", tmp_path / "none.ekb", "--trust", trusted),
        ("verify", bundle, "--trust", tmp_path / "none.pub"),
        ("verify", bundle, "--trust", bundle),
    ):
        answer = edgekit(*words)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("edgekit: ")
        assert answer.err.count("\n") == 1


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello " * 100)
    answer = edgekit("inspect", path)
    assert answer.code == 1
    assert "notes.txt rejected: not a bundle" in answer.err


def test_new_key_signs_what_verify_then_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.release.keys import load_key

    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "secret")
    key = tmp_path / "my.key"
    made = json.loads(edgekit("keys", "new", key, "--json").out)
    path = null_bundle().write(tmp_path / "tiny.ekb", load_key(key, b"secret"))
    answer = edgekit("verify", path, "--trust", made["public"], "--json")
    assert json.loads(answer.out)["keyid"] == made["keyid"]
    for shown in (key, made["public"]):
        assert json.loads(edgekit("keys", "show", shown, "--json").out)["keyid"] == made["keyid"]
    assert made["keyid"] in edgekit("keys", "show", key).out
    assert edgekit("keys", "new", key).code == 1
    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "wrong")
    answer = edgekit("keys", "show", key)
    assert answer.code == 1
    assert "the passphrase does not open" in answer.err


def test_empty_passphrase_warns_and_none_at_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_PASSPHRASE", raising=False)
    answer = edgekit("keys", "new", tmp_path / "a.key")
    assert answer.code == 2
    assert "set EDGEKIT_PASSPHRASE" in answer.err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("EDGEKIT_PASSPHRASE", "")
    answer = edgekit("keys", "new", tmp_path / "a.key")
    assert answer.code == 0
    assert "has no passphrase" in answer.err


def test_profiles_are_listed_and_shown_with_their_sources() -> None:
    listed = edgekit("profiles", "list")
    assert listed.code == 0
    assert "raspberry-pi-5" in listed.out
    names = [
        profile["name"]
        for profile in json.loads(edgekit("profiles", "list", "--json").out)["profiles"]
    ]
    assert names == sorted(names)
    assert len(names) == 10
    text = edgekit("profiles", "show", "raspberry-pi-5").out
    assert "# BCM2712" in text
    assert msgspec.toml.decode(text)["name"] == "raspberry-pi-5"
    shown = json.loads(edgekit("profiles", "show", "raspberry-pi-5", "--json").out)
    assert shown["cpu"]["core"] == "cortex-a76"


def test_unknown_profile_names_the_nearest_and_the_known() -> None:
    answer = edgekit("profiles", "show", "rpi5")
    assert answer.code == 2
    assert answer.err.startswith(
        "edgekit: unknown profile 'rpi5'; did you mean raspberry-pi-5? Known are android-arm64, "
    )
    assert answer.err.count("\n") == 1


def test_runtime_that_is_not_installed_is_no_failure(tmp_path: Path, trusted: Path) -> None:
    small = null_bundle()
    requires = msgspec.structs.replace(
        small.manifest.requires, runtime=RuntimeKind.LITERT, min_runtime_version="99"
    )
    path = small.changed(runtime=RuntimeKind.LITERT, requires=requires).write(tmp_path / "t.ekb")
    answer = edgekit("verify", path, "--trust", trusted)
    assert answer.code == 0
    assert "NOT RUN" in answer.out
