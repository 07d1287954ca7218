"""`edgekit build` as a user types it, on the digits of examples/."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from build_requests import DIGITS, INT8, host_profile

import edgekit_profiles
from edgekit.build import BuildRequest, builder
from edgekit.build import build as build_bundles
from edgekit.build.host import parse_cpuinfo, read_host
from edgekit.build.report import Candidate
from edgekit.demo.devices import small_profile
from edgekit.release.keys import new_key
from edgekit_contract.trust import open_bundle, verify_archive

MODEL = DIGITS / "digits.onnx"
DATA = (
    "--calibration", str(DIGITS / "calibration.npz"),
    "--validation", str(DIGITS / "validation.npz"),
)  # fmt: skip
STATIC = "int8-static/per-channel/u8s8*/minmax"


def edgekit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from edgekit.cli import main; main()", "build", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env={**os.environ, "EDGEKIT_PASSPHRASE": ""},
        check=False,
    )


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = edgekit(
        str(MODEL), "--profile", "raspberry-pi-4", "--profile", "linux-x86-64", *DATA, "--dry-run",
        "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plans: list[dict[str, Any]] = json.loads(done.stdout)["plan"]
    assert [p["profile"] for p in plans] == ["raspberry-pi-4", "linux-x86-64"]
    assert "int8-static/per-channel/s8s8/percentile" in plans[0]["recipes"]
    assert "int8-static/per-channel/s8s8-reduced/percentile" in plans[1]["recipes"]
    assert all(skipped["reason"] for plan in plans for skipped in plan["skipped"])
    assert list(tmp_path.iterdir()) == []


def test_build_for_two_profiles_chooses_packs_and_signs(tmp_path: Path) -> None:
    key = new_key(tmp_path / "key", None)
    (tmp_path / "host.toml").write_bytes(small_profile(read_host()))
    before = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    done = edgekit(
        str(MODEL), "--profile", "host.toml", "--profile", "raspberry-pi-4", *DATA,
        "--recipe", STATIC, "--objective", "size", "--name", "digits", "--version", "1.3",
        "--key", str(tmp_path / "key"), "-o", "out", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bundles = json.loads(done.stdout)["bundles"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "digits-1.3-demo-small.ekb",
        "digits-1.3-raspberry-pi-4.ekb",
    ]
    for bundle in bundles:
        report = bundle["report"]
        chosen = next(c for c in report["candidates"] if c["outcome"] == "chosen")
        assert chosen["recipe"] == f"int8-static/per-channel/{INT8}/minmax"
        assert report["chosen"].startswith(chosen["recipe"])
        assert report["metric"] == "top1" and report["validation_samples"] == 500
        float32, int8 = report["candidates"][0], chosen
        assert int8["size_bytes"] < 0.45 * float32["size_bytes"]
        assert int8["score"]["value"] >= float32["score"]["value"] - 0.01
        assert int8["held_out"]["rows"] == 500
        assert all(c["reason"] for c in report["candidates"])
        manifest = verify_archive(tmp_path / bundle["path"], [key.public]).manifest
        assert manifest.provenance.calibration_sha256 is not None
        assert manifest.provenance.source_sha256 == before
        assert manifest.golden.source == "validation" and manifest.golden.top1 == ("logits",)
    on_target = [bundle["report"]["on_target"] for bundle in bundles]
    assert on_target == [True, read_host().is_of(edgekit_profiles.load("raspberry-pi-4").cpu)]
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == before


def test_machine_with_fewer_cores_than_the_profile_s_threads_says_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_core = dataclasses.replace(read_host(), cores=1)
    monkeypatch.setattr(builder, "read_host", lambda: one_core)
    profile = host_profile()
    runtimes = tuple(msgspec.structs.replace(r, threads=2) for r in profile.runtimes)
    wider = msgspec.structs.replace(profile, runtimes=runtimes)
    result = build_bundles(
        BuildRequest(
            model=MODEL,
            profiles=(wider,),
            name="digits",
            version="1.0",
            output=tmp_path,
            recipes=("float32",),
            search_time_s=0.2,
        )
    )
    report = result.built[0].report
    assert (report.threads, report.measured_threads) == (2, 1)
    assert not report.on_target
    assert any("with 1 of demo-small's 2 threads" in remark for remark in report.remarks)


def test_build_on_a_machine_that_saturates_proves_no_full_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    haswell = parse_cpuinfo("flags: avx avx2 fma", arch="x86_64", cores=2)
    monkeypatch.setattr(builder, "read_host", lambda: haswell)
    result = build_bundles(
        BuildRequest(
            model=MODEL,
            profiles=(edgekit_profiles.load("raspberry-pi-4"),),
            name="digits",
            version="1.0",
            output=tmp_path,
            validation=str(DIGITS / "validation.npz"),
            recipes=(STATIC,),
            search_time_s=0.2,
        )
    )
    report = result.built[0].report
    outcomes = {(c.recipe, c.outcome.value) for c in report.candidates}
    assert ("int8-static/per-channel/u8s8/minmax", "skipped") in outcomes
    assert ("int8-static/per-channel/u8s8-reduced/minmax", "chosen") in outcomes
    assert any("machine with VNNI" in remark for remark in report.remarks)


def test_table_tells_every_outcome_and_that_the_bundle_is_not_signed(tmp_path: Path) -> None:
    done = edgekit(
        str(MODEL), "--profile", "raspberry-pi-zero-2w", "--recipe", "float16/*", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "measured on HOST" in out
    assert "float16/weights" in out and "chosen:" in out and "lost:" in out
    assert "There are no data" in out
    assert "not signed" in out
    assert (tmp_path / "digits-1.0.0-raspberry-pi-zero-2w.ekb").exists()


@pytest.mark.parametrize("words", [("--help",), ("--dry-run", "--profile", "demo-small")])
def test_command_answers_on_stdout_and_tells_progress_on_stderr(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = edgekit(str(MODEL), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout and " ..." not in done.stdout.split("DATA is", maxsplit=1)[0]


def test_variants_that_estimates_do_not_tell_apart_are_packed_to_be_measured(
    tmp_path: Path,
) -> None:
    done = edgekit(
        str(MODEL), "--profile", "raspberry-pi-4", "--recipe", "int8-static/per-channel/*/minmax",
        "--calibration", str(DIGITS / "calibration.npz"),
        "--validation", str(DIGITS / "validation.npz"),
        "--search-time", "3", "--contenders", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (built,) = json.loads(done.stdout)["bundles"]
    report = built["report"]
    left = {title(c) for c in report["candidates"] if c["is_open"]}
    assert left and any("do not tell the chosen from" in text for text in report["remarks"])
    assert [path.name for path in tmp_path.glob("*.ekb")] == ["digits-1.0.0-raspberry-pi-4.ekb"]
    packed = [open_bundle(Path(tmp_path, path)).manifest for path in built["contenders"]]
    assert packed
    assert {manifest.provenance.recipe for manifest in packed} <= left
    assert {manifest.profile for manifest in packed} == {"raspberry-pi-4"}


def title(candidate: dict[str, Any]) -> str:
    return msgspec.convert(candidate, Candidate).title
