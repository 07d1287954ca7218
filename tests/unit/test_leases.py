"""Temporary directories of those who were killed are removed by whoever makes the next one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit_converters.leases import Leased

HELD = """
import sys, time
from edgekit_converters.leases import Leased
held = Leased("some-")
(held.path / "large").write_bytes(b"x")
print(held.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_directory_of_a_process_that_was_killed_goes_and_that_of_a_living_one_stays(
    tmp_path: Path,
) -> None:
    foreign = tmp_path / "some-other"
    foreign.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with Leased("some-") as mine:
            assert mine.parent == tmp_path and (theirs / "large").exists()
        assert not mine.exists() and theirs.exists()
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert theirs.exists()
        with Leased("others-"):
            assert theirs.exists()
        with Leased("some-") as mine:
            assert mine.exists() and not theirs.exists()
    assert foreign.exists()


def test_removal_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    held = Leased("some-")
    (held.path / "sub").mkdir()
    (held.path / "sub" / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **_: None)
        held.close()
    assert (held.path / ".lease").exists()
    Leased("some-").close()
    assert not list(tmp_path.glob("some-*"))


def test_file_system_without_locks_keeps_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(held: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with Leased("some-") as mine:
        (mine / "file").touch()
        with Leased("some-"):
            assert (mine / "file").exists()
    assert not list(tmp_path.glob("some-*"))


def test_directory_goes_whatever_happens_in_it() -> None:
    with pytest.raises(ZeroDivisionError), Leased("some-") as mine:
        (mine / "file").touch()
        _ = 1 / 0
    assert not mine.exists()
