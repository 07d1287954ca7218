"""Steps that crash, hang or eat memory are stopped and named; a wrong result is not believed."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgekit_contract.errors import Refused
from edgekit_converters import environments
from edgekit_converters.isolation import Limits, StepFailed, StepRefused, Workshop, run
from edgekit_converters.tensorfile import read_tensors, write_tensors


def add(a: int, b: int) -> int:
    return a + b


_calls: list[int] = []


def remember() -> int:
    _calls.append(1)
    return len(_calls)


def take(seconds: float) -> list[int]:
    time.sleep(seconds)
    return [os.getppid(), os.getpgid(os.getppid())]


def workshop_of() -> int:
    """The process that forked this one's supervisor."""
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    return int(status.split("PPid:")[1].split()[0])


def environments_of_here() -> str:
    return str(environments.cache())


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    sys.exit(0)


def leave_at_once() -> None:
    os._exit(0)


def hang(witness: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(witness).write_text(str(child.pid))
    time.sleep(600)


def eat() -> int:
    return len(bytearray(1 << 30))


def refuse() -> None:
    raise Refused("no, because.")


def fail() -> None:
    raise ValueError("three\nlines\nlong.")


def fill(out: str) -> None:
    Path(out).write_bytes(bytes(1 << 20))


def find_the_disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/scratch/model.onnx")


def here(function: str) -> str:
    return f"{__name__}:{function}"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child imports this module by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def test_result_comes_back() -> None:
    assert run("adding", here("add"), {"a": 2, "b": 3}, Limits()) == 5


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("crash", "crashed (SIGSEGV)"),
        ("leave", "no result"),
        ("leave_at_once", "no result"),
        ("fail", "ValueError: three lines long"),
        ("absent", "AttributeError"),
    ],
)
def test_step_that_fails_is_named_with_the_cause(function: str, said: str) -> None:
    with pytest.raises(StepFailed) as caught:
        run("the step", here(function), {}, Limits())
    assert str(caught.value).startswith("the step failed: ")
    assert said in str(caught.value)


def test_step_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="did not end within 5 s"):
        run("the step", here("hang"), {"witness": str(tmp_path / "pid")}, Limits(timeout_s=5.0))
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a grandchild outlived the step")


def test_step_that_eats_memory_is_stopped() -> None:
    with pytest.raises(StepFailed, match="more than 256 MiB"):
        run("the step", here("eat"), {}, Limits(memory_bytes=256 << 20))


def test_step_that_fills_the_disk_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="OSError"):
        run("the step", here("fill"), {"out": str(tmp_path / "f")}, Limits(file_bytes=1 << 16))


def test_full_disk_is_not_the_step_s_fault() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        run("the step", here("find_the_disk_full"), {}, Limits())
    assert caught.value.errno == errno.ENOSPC


def test_refusal_crosses_as_it_was_said() -> None:
    with pytest.raises(StepRefused, match=r"^no, because\.$"):
        run("the step", here("refuse"), {}, Limits())


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        with Workshop() as opened:
            yield opened
    finally:
        sys.path.remove(str(Path(__file__).parent))


def test_calls_see_the_cache_that_their_caller_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", "kept/here")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with Workshop() as opened:
        seen = opened.run("it", here("environments_of_here"), {}, Limits())
    assert seen == environments_of_here() == str(tmp_path / "kept/here/environments")


def test_call_inherits_nothing_from_the_one_before(workshop: Workshop) -> None:
    assert [workshop.run("it", here("remember"), {}, Limits()) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("function", ["crash", "leave_at_once", "fail", "eat", "hang"])
def test_workshop_goes_on_after_a_failure(
    workshop: Workshop, function: str, tmp_path: Path
) -> None:
    words = {"witness": str(tmp_path / "pid")} if function == "hang" else {}
    bounds = Limits(timeout_s=1.0, memory_bytes=512 << 20)
    before = workshop.run("it", here("workshop_of"), {}, Limits())
    with pytest.raises(StepFailed, match=r"^the step failed: "):
        workshop.run("the step", here(function), words, bounds)
    assert workshop.run("it", here("workshop_of"), {}, Limits()) == before


def test_workshop_that_was_killed_is_opened_again(workshop: Workshop) -> None:
    before = workshop.run("it", here("workshop_of"), {}, Limits())
    os.kill(before, signal.SIGKILL)
    while Path(f"/proc/{before}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert workshop.run("it", here("workshop_of"), {}, Limits()) != before


def test_workshop_serves_several_at_a_time(workshop: Workshop) -> None:
    workshop.run("it", here("take"), {"seconds": 0.0}, Limits())  # it is warm then
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(workshop.run, "it", here("take"), {"seconds": 3.0}, Limits())
                 for _ in range(4)]  # fmt: skip
        groups = {tuple(call.result()) for call in calls}
    assert time.monotonic() - began < 11  # one after the other they take 12
    assert len(groups) == 4 and all(leader == group for leader, group in groups)


def test_workshop_leaves_no_process_and_no_file() -> None:
    with Workshop() as opened:
        pid = opened.run("it", here("workshop_of"), {}, Limits())
        home = Path(f"/proc/{pid}/cwd").readlink()
        assert home.is_dir()
    assert not Path(f"/proc/{pid}").exists()
    assert not home.exists()
    with pytest.raises(RuntimeError, match="closed"):
        opened.run("it", here("workshop_of"), {}, Limits())


def test_tensors_cross_with_any_name_and_shape(tmp_path: Path) -> None:
    tensors = {"a/b:0": np.ones((2, 0)), "names": np.float32(3).reshape(()), "é": np.arange(3)}
    write_tensors(tmp_path / "t.npz", tensors)
    back = read_tensors(tmp_path / "t.npz")
    assert list(back) == list(tensors)
    assert all(np.array_equal(back[n], tensors[n]) and back[n].shape == tensors[n].shape
               for n in tensors)  # fmt: skip
