"""Broken models: a sentence each, whatever the parser and the runtime make of them.

All 500 of the corpus are read, tried, normalized and planned; a few are built, some with int8 and
data. `scripts/fuzz` builds all of them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from broken_builds import Sandbox
from command_line import edgekit
from mutants import KINDS, Mutant, mutants
from tflite_mutants import TFLITE_KINDS, tflite_mutants

from edgekit_converters import isolation

COUNT = 500
CORPUS = list(mutants(COUNT))
TFLITE_ROUNDS = 3
"""Of all kinds; `scripts/fuzz --tflite` builds 500."""
TFLITE_CORPUS = list(tflite_mutants(TFLITE_ROUNDS * len(TFLITE_KINDS)))
CORPORA = [(kind, CORPUS) for kind in KINDS] + [(kind, TFLITE_CORPUS) for kind in TFLITE_KINDS]


class Shared:
    """One workshop for all builds: their steps are forks of it all the same."""

    def __init__(self, workshop: isolation.Workshop) -> None:
        self._workshop = workshop

    def __call__(self, **_: object) -> Shared:
        return self

    def __enter__(self) -> isolation.Workshop:
        return self._workshop

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with isolation.Workshop() as workshop:
        yield Shared(workshop)


def sandbox_of(mutant: Mutant, directory: Path, **how: bool) -> Sandbox:
    sandbox = Sandbox(directory / "sandbox", suffix=mutant.suffix, **how)
    sandbox.root.mkdir()
    sandbox.put(mutant)
    return sandbox


@pytest.mark.parametrize(
    ("kind", "corpus"), CORPORA, ids=[f"{corpus[0].suffix[1:]}-{kind}" for kind, corpus in CORPORA]
)
def test_broken_model_is_refused_with_a_sentence_or_planned(
    kind: str,
    corpus: list[Mutant],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: Shared,
) -> None:
    monkeypatch.setattr(isolation, "Workshop", shared)
    # what hangs does so in a quarter of the time, too
    monkeypatch.setitem(isolation.limits_for.__kwdefaults__, "timeout_s", 10.0)
    found = {}
    for mutant in (m for m in corpus if m.kind == kind):
        with tempfile.TemporaryDirectory(dir=tmp_path) as directory, monkeypatch.context() as patch:
            sandbox = sandbox_of(mutant, Path(directory), dry_run=True)
            patch.setenv("TMPDIR", str(sandbox.root / "tmp"))
            patch.setattr(tempfile, "tempdir", str(sandbox.root / "tmp"))
            patch.setenv("HOME", str(sandbox.root / "home"))
            patch.chdir(sandbox.root / "cwd")
            began = time.monotonic()
            answer = edgekit(*sandbox.words)
            trouble = sandbox.trouble(mutant, answer.code, answer.err, time.monotonic() - began)
            if trouble is not None:
                found[mutant.name] = f"{trouble}: {answer.err}"
    assert found == {}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", ["cut short", "versions"])
def test_command_refuses_or_builds_a_broken_model(kind: str, int8: bool, tmp_path: Path) -> None:
    mutant = next(m for m in CORPUS if m.kind == kind)
    assert trouble_of_command(mutant, tmp_path, int8=int8) is None


def test_kernels_of_another_level_that_crash_take_no_build_along(tmp_path: Path) -> None:
    """LiteRT's own kernels crash on this one, XNNPACK's compute it."""
    mutant = next(islice(tflite_mutants(500), 490, None))
    assert mutant.name.endswith("variables and names of wake word with branches")
    assert trouble_of_command(mutant, tmp_path) is None


def trouble_of_command(mutant: Mutant, directory: Path, **how: bool) -> str | None:
    """What was wrong with how the command ended, and what it said; nothing may be."""
    sandbox = sandbox_of(mutant, directory, **how)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *sandbox.words],
        env={
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(sandbox.root / "tmp"),
            "HOME": str(sandbox.root / "home"),
            "EDGEKIT_CACHE_MIB": "0",  # what a good build keeps is no leftover
        },
        cwd=sandbox.root / "cwd",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    trouble = sandbox.trouble(mutant, done.returncode, done.stderr, time.monotonic() - began)
    return None if trouble is None else f"{trouble}: {done.stderr}"


def test_corpus_is_the_same_each_time() -> None:
    again = list(mutants(len(CORPUS)))
    assert [(m.name, m.model, m.data) for m in again] == [(m.name, m.model, m.data) for m in CORPUS]
    assert {m.kind for m in CORPUS} == set(KINDS)
    again = list(tflite_mutants(len(TFLITE_CORPUS)))
    assert [(m.name, m.model) for m in again] == [(m.name, m.model) for m in TFLITE_CORPUS]
    assert {m.kind for m in TFLITE_CORPUS} == set(TFLITE_KINDS)
