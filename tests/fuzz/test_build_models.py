"""Broken models: a sentence each, whatever the parser and the runtime make of them.

These are the first of the corpus; `scripts/fuzz` builds all of it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from broken_builds import Sandbox
from command_line import edgekit
from mutants import KINDS, Mutant, mutants

ROUNDS = 2
CORPUS = list(mutants(ROUNDS * len(KINDS)))


def sandbox_of(mutant: Mutant, directory: Path, *, dry_run: bool) -> Sandbox:
    sandbox = Sandbox(directory / "sandbox", dry_run)
    sandbox.root.mkdir()
    sandbox.put(mutant)
    return sandbox


@pytest.mark.parametrize("mutant", CORPUS, ids=[mutant.name for mutant in CORPUS])
def test_broken_model_is_refused_with_a_sentence_or_planned(
    mutant: Mutant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = sandbox_of(mutant, tmp_path, dry_run=True)
    monkeypatch.setenv("TMPDIR", str(sandbox.root / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(sandbox.root / "tmp"))
    began = time.monotonic()
    answer = edgekit(*sandbox.words)
    trouble = sandbox.trouble(mutant, answer.code, answer.err, time.monotonic() - began)
    assert trouble is None, answer.err


@pytest.mark.parametrize("kind", ["cut short", "versions"])
def test_command_refuses_or_builds_a_broken_model(kind: str, tmp_path: Path) -> None:
    mutant = next(m for m in CORPUS if m.kind == kind)
    sandbox = sandbox_of(mutant, tmp_path, dry_run=False)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *sandbox.words],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(sandbox.root / "tmp")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    trouble = sandbox.trouble(mutant, done.returncode, done.stderr, time.monotonic() - began)
    assert trouble is None, done.stderr


def test_corpus_is_the_same_each_time() -> None:
    again = list(mutants(len(CORPUS)))
    assert [(m.name, m.model, m.data) for m in again] == [(m.name, m.model, m.data) for m in CORPUS]
    assert {m.kind for m in CORPUS} == set(KINDS)
