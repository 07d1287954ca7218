"""What goes wrong around any command: its words, its output, the disk. One sentence each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import KEY, null_bundle
from command_line import edgekit
from fleets import make_fleet
from parts import need_command

HOST = [sys.executable, "-m", "edgekit"]
AGENT = [sys.executable, "-m", "edgekit_agent"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect"], "missing argument 'BUNDLE': see edgekit inspect --help."),
        (["build", "--profil", "x"], "'--profile': see edgekit build --help."),
        (["rollout", "start", "a@1", "x"], "see edgekit rollout start --help."),
        (["nosuch"], "no such command 'nosuch': see edgekit --help."),
        (["build", "m.onnx", "--max-ms", "x"], "'x' is not a valid float: see edgekit build"),
    ],
)
def test_wrong_words_cost_one_sentence(words: list[str], said: str) -> None:
    answer = edgekit(*words)
    assert answer.code == 2
    assert answer.err.startswith("edgekit: ") and answer.err.count("\n") == 1
    assert said in answer.err and answer.err.endswith("--help.\n")


def test_wrong_words_to_the_agent_cost_one_sentence() -> None:
    done = subprocess.run([*AGENT, "infer", "m"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "edgekit-agent: the following arguments are required: INPUT: see edgekit-agent"
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1


def test_output_that_nobody_can_take_costs_one_sentence(tmp_path: Path) -> None:
    bundle = null_bundle().write(tmp_path / "b.ekb")
    for words in (
        [*HOST, "inspect", str(bundle)],
        [*HOST, "inspect", str(bundle), "--json"],
        [*AGENT, "--version"],
    ):
        with open("/dev/full", "w") as full:  # noqa: PTH123
            done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 1
        text = done.stderr.decode()
        assert "no space left on device" in text and text.count("\n") == 1


def test_release_that_the_disk_has_no_room_for_costs_one_sentence(tmp_path: Path) -> None:
    fleet = make_fleet(tmp_path / "fleet")
    big = null_bundle()
    big = big.with_files({**big.files, "files/big.bin": os.urandom(1 << 20)})
    bundle = big.write(tmp_path / "b.ekb", KEY)
    blobs = fleet.directory / "blobs"
    blobs.mkdir(exist_ok=True)
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=64k none {blobs}"
    need_command(*own_mounts, mount, install="allow user namespaces")
    words = [*HOST, "release", "add", str(bundle), "--fleet", str(fleet.directory)]
    done = subprocess.run(
        [*own_mounts, f'{mount} && "$@"; code=$?; ls -A {blobs} | grep new-; exit $code', "sh",
         *words],
        capture_output=True,
        text=True,
        env={**os.environ, "EDGEKIT_PASSPHRASE": ""},
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"edgekit: {blobs}/") and "no space left on device; make room" in said
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert fleet.repository.releases() == ()
