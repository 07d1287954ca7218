"""Environments of tools: made whole, once, and not at all where they cannot be."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.build.turns import Turns
from edgekit_contract.errors import Misused, Refused
from edgekit_converters import environments
from edgekit_converters.environments import (
    LITERT,
    Environment,
    EnvironmentMissing,
    InterpreterMissing,
    ToolFailed,
    ToolRefused,
)

SMALL = Environment(
    name="small",
    title="testing",
    versions=("3.12", "3.13", "3.11", "3.10"),
    pins=("six==1.17.0",),
    proof="import six",
    size_mb=20,
)
TOOL = """
import json, pathlib, sys
import six
words = json.loads(pathlib.Path(sys.argv[1]).read_text())
if words["how"] == "crash":
    raise ValueError("it fell over")
answer = {"refused": "no, because."} if words["how"] == "refuse" else {"result": six.__version__}
pathlib.Path(sys.argv[2]).write_text(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(cache))
    return cache / "environments"


def test_two_at_once_make_one(cached: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(environments.set_up, [SMALL, SMALL])
    assert first == second == environments.find(SMALL)
    assert [path.name for path in cached.iterdir() if path.is_dir()] == [first.parents[1].name]
    version = [first, "-I", "-c", "import six; print(six.__version__)"]
    assert subprocess.run(version, capture_output=True, text=True, check=True).stdout == "1.17.0\n"


def test_who_makes_one_and_who_waits_for_it_let_others_measure(
    cached: Path, tmp_path: Path
) -> None:
    """Two builds want the same environment while a third measures."""
    entered = tmp_path / "entered"
    proof = f"import pathlib, time; pathlib.Path({str(entered)!r}).touch(); time.sleep(3)"
    slow = replace(SMALL, name="slow", proof=proof)

    def compute(_: int) -> Path:
        turns = Turns(tmp_path)
        with turns.together():
            return environments.set_up(slow, neighbours=turns)

    with ThreadPoolExecutor(2) as pool:
        made = pool.map(compute, range(2))
        while not entered.exists():
            time.sleep(0.01)
        third, began = Turns(tmp_path), time.monotonic()
        with third.alone():
            waited_s = time.monotonic() - began
            assert environments.find(slow) is None
            time.sleep(4)
            assert environments.find(slow) is None
        assert waited_s < 2 and not third.disturbed
        assert len({*made, environments.find(slow)}) == 1


def test_other_pins_are_another_environment(cached: Path) -> None:
    environments.set_up(SMALL)
    assert environments.find(replace(SMALL, pins=("six==1.16.0",))) is None


def test_tool_answers_refuses_or_is_named(cached: Path, tmp_path: Path) -> None:
    environments.set_up(SMALL)
    tool = tmp_path / "measure.py"
    tool.write_text(TOOL)

    def call(how: str) -> object:
        return environments.call(SMALL, tool, {"how": how}, home=tmp_path / how)

    assert call("answer") == "1.17.0"
    with pytest.raises(ToolRefused, match="no, because"):
        call("refuse")
    with pytest.raises(ToolFailed, match="measure failed: ValueError: it fell over"):
        call("crash")


def test_failed_set_up_leaves_nothing_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Refused, match=r"setting up small failed \(installing it: .*six==1.17.0"):
        environments.set_up(SMALL)
    assert not [path for path in (tmp_path / "environments").iterdir() if path.is_dir()]
    assert environments.find(SMALL) is None


def test_machine_without_a_fitting_python_says_which_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with pytest.raises(InterpreterMissing, match=r"testing needs Python 3\.98 or 3\.99"):
        environments.set_up(replace(SMALL, versions=("3.98", "3.99")))


def test_cache_that_cannot_be_written_is_the_users_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "environments").write_text("a file")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    with pytest.raises(Refused, match="EDGEKIT_CACHE"):
        environments.set_up(SMALL)


def test_call_before_set_up_says_the_command(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing, match="edgekit environments setup litert"):
        environments.call(LITERT, tmp_path / "tool.py", {}, home=tmp_path)


def test_unknown_environment_is_wrong_usage() -> None:
    with pytest.raises(Misused, match="there are litert"):
        environments.find_environment("caffe")
