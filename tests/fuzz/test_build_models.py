"""Mutated models: a sentence each, whatever the parser and the runtime make of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from build_requests import DIGITS
from small_models import SMALL_MODELS, write_small

from edgekit_contract.errors import EdgekitError
from edgekit_converters.sources import open_source

MUTANTS = 30


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 20))):
        at = chance.randrange(len(changed))
        kind = chance.random()
        if kind < 0.6:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind < 0.8:
            changed[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
        else:
            del changed[at:]
            changed += b"\0"
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_models_are_opened_or_refused_with_one_sentence(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    bases = [write_small(name, tmp_path).read_bytes() for name in SMALL_MODELS]
    bases.append((DIGITS / "digits.onnx").read_bytes())
    model, scratch = tmp_path / "m.onnx", tmp_path / "scratch"
    scratch.mkdir()
    refused = 0
    for _ in range(MUTANTS // 3):
        model.write_bytes(mutated(chance.choice(bases), chance))
        try:
            open_source(model, scratch=scratch)
        except EdgekitError as error:
            refused += 1
            text = str(error)
            assert text.endswith(".") and "\n" not in text and len(text) < 500, text
    assert refused
    assert {path.name for path in scratch.iterdir()} <= {"given.onnx"}
