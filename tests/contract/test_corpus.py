"""The corpus is the format: every reader comes to its verdicts, and what was signed stays valid."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from wire_examples import CHUNKS, MESSAGES

from edgekit.release.keys import read_public_key
from edgekit.release.proof import GoldenRun, prove, this_machine
from edgekit_contract import messages
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.trust import verify_archive

CORPUS = Path(__file__).parent / "corpus"
INDEX: dict[str, Any] = msgspec.json.decode((CORPUS / "index.json").read_bytes())


def entries(kind: str, **wanted: str) -> list[Any]:
    found = [e for e in INDEX[kind] if all(e[key] == value for key, value in wanted.items())]
    assert found
    return [pytest.param(entry, id=entry["file"]) for entry in found]


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("corpus_make", CORPUS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_todays_code_writes_the_same_bytes() -> None:
    """Bundles, both signatures and messages follow from their content alone."""
    made: dict[str, bytes] = maker().files()
    there = {path.name: path.read_bytes() for path in CORPUS.iterdir() if path.is_file()}
    there.pop("make.py")
    assert {name for name in made if made[name] != there.get(name)} == set()
    assert there.keys() == made.keys()


@pytest.mark.parametrize("entry", entries("bundles", verdict="accepted"))
def test_accepted_bundle_verifies_and_reproduces_its_golden_vectors(entry: dict[str, str]) -> None:
    key = read_public_key(CORPUS / entry["trust"])
    proof = prove(CORPUS / entry["file"], [key], this_machine("demo-small"))
    assert proof.golden is GoldenRun.REPRODUCED


@pytest.mark.parametrize("entry", entries("bundles", verdict="rejected"))
def test_rejected_bundle_is_rejected_for_its_reason(entry: dict[str, str]) -> None:
    key = read_public_key(CORPUS / entry["trust"])
    with pytest.raises(BundleRejected) as caught:
        verify_archive(CORPUS / entry["file"], [key])
    assert caught.value.reason is Reason[entry["reason"].upper().replace("-", "_")]


@pytest.mark.parametrize("entry", entries("messages"))
def test_message_decodes_to_its_example_and_encodes_back(entry: dict[str, str]) -> None:
    data = (CORPUS / entry["file"]).read_bytes()
    decoded = messages.decode(data, getattr(messages, entry["is"]))
    assert decoded == MESSAGES[Path(entry["file"]).stem]
    assert messages.encode(decoded) == data


@pytest.mark.parametrize("entry", entries("chunks"))
def test_chunk_decodes_to_its_example_and_encodes_back(entry: dict[str, Any]) -> None:
    data = bytes.fromhex((CORPUS / entry["file"]).read_text())
    chunk = messages.decode_chunk(data)
    assert chunk == CHUNKS[Path(entry["file"]).stem]
    assert (chunk.status.name, chunk.offset, chunk.total, chunk.data.hex()) == (
        entry["status"],
        entry["offset"],
        entry["total"],
        entry["data"],
    )
    assert messages.encode_chunk(chunk) == data


def test_every_message_has_an_example() -> None:
    """Each kind of topic, and each field of each message, is in the corpus."""
    shown = {type(message) for message in MESSAGES.values()}
    assert shown >= {
        messages.Status, messages.Reported, messages.Desired, messages.Health,
        messages.Event, messages.Ack, messages.Fetch, messages.Bench, messages.Benched,
    }  # fmt: skip
    fields = {
        (kind.__name__, name)
        for kind in messages.Message.__subclasses__()
        for name in kind.__struct_fields__
    }
    seen = {
        (type(part).__name__, name)
        for message in MESSAGES.values()
        for part in parts(message)
        for name in part.__struct_fields__
        if getattr(part, name) is not None
    }
    assert fields - seen == set()


def parts(value: Any) -> list[Any]:
    """A message and all messages inside it."""
    if isinstance(value, dict):
        return [part for item in value.values() for part in parts(item)]
    if not isinstance(value, messages.Message):
        return []
    inner = [parts(getattr(value, name)) for name in value.__struct_fields__]
    return [value, *(part for found in inner for part in found)]
