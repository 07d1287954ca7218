"""Whatever bytes arrive, only the declared errors come out.

A short run at every test; EDGEKIT_FUZZ_EXAMPLES raises the number of inputs per decoder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import KEY, archive_of, null_bundle, onnx_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_examples import CHUNKS, MESSAGES

from edgekit_contract import topics
from edgekit_contract.archive import open_archive_bytes
from edgekit_contract.envelope import ENVELOPE_PATH
from edgekit_contract.envelope import decode as decode_envelope
from edgekit_contract.errors import BundleRejected, MessageRejected, Misused
from edgekit_contract.messages import decode, decode_chunk, encode, encode_chunk
from edgekit_contract.profile import parse_profile
from edgekit_contract.trust import load_public_key, open_bundle, verify_archive
from edgekit_profiles import names as profile_names
from edgekit_profiles import text as profile_text
from edgekit_runtime.golden import read_golden

EXAMPLES = int(os.environ.get("EDGEKIT_FUZZ_EXAMPLES", "200"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

INTERESTING = st.sampled_from(
    [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f", b"{", b"[" * 300, b"}", b'"', b"\\u0000",
     b"\\ud800", b"\\ud800\\ud800", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"../", b"/",
     b"\n", b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"=", b"A=="]
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with a few stretches replaced, moved or repeated; or bytes from nowhere."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at, to = sorted(draw(st.integers(0, len(data))) for _ in range(2))
        middle = draw(
            st.binary(max_size=16)
            | INTERESTING
            | st.just(data[at:to])
            | st.just(data[at:to] * 2)
            | st.just(data[at:to][::-1])
            | st.sampled_from([flip(data[at : at + 1], bit) for bit in range(8)])
        )
        end = draw(st.sampled_from([at, min(len(data), at + len(middle)), to]))
        data = data[:at] + middle + data[end:]
    return draw(st.just(data) | st.binary(max_size=300)) if draw(st.booleans()) else data


def flip(data: bytes, bit: int) -> bytes:
    return bytes(byte ^ (1 << bit) for byte in data)


NULL, ONNX = null_bundle(), onnx_bundle()
ENVELOPES = [NULL.envelope(KEY), ONNX.envelope(KEY), NULL.envelope()]
PAYLOADS = [decode_envelope(raw).payload for raw in ENVELOPES[:2]]


@fuzz
@given(data=mutated([NULL.pack(), ONNX.pack()]))
def test_bundle_reader_raises_nothing_else(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "fuzzed.ekb"
    path.write_bytes(data)
    for read in (open_bundle, lambda path: verify_archive(path, [KEY.public])):
        try:
            read(path)  # type: ignore[operator]
        except BundleRejected as error:
            assert str(error).isprintable()


@fuzz
@given(raw=mutated(ENVELOPES))
def test_bundle_with_a_fuzzed_envelope_raises_nothing_else(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "fuzzed.ekb"
    path.write_bytes(archive_of([(ENVELOPE_PATH, raw), *NULL.files.items()]))
    try:
        verify_archive(path, [KEY.public])
    except BundleRejected:
        assert raw != ENVELOPES[0]


@fuzz
@given(payload=mutated(PAYLOADS))
def test_envelope_reader_raises_nothing_else_behind_the_base64(payload: bytes) -> None:
    from edgekit_contract.envelope import _encode_wire

    only_rejects(BundleRejected, decode_envelope, _encode_wire(payload, ()))


@fuzz
@given(data=mutated([archive_of([]), archive_of([("a", b"b"), ("c", b"")])]))
def test_archive_reader_raises_nothing_else(data: bytes) -> None:
    def read(data: bytes) -> None:
        archive = open_archive_bytes(data, title="x", max_entries=100)
        for name in archive.entries:
            assert len(archive.read(name, limit_bytes=1000)) <= len(data)

    only_rejects(BundleRejected, read, data)


@fuzz
@given(data=mutated([NULL.files["files/golden.npz"], ONNX.files["files/golden.npz"]]))
def test_golden_reader_raises_nothing_else(data: bytes) -> None:
    manifest = NULL.manifest
    only_rejects(
        BundleRejected, read_golden, data, manifest.golden, manifest.inputs, manifest.outputs
    )


@fuzz
@given(payload=mutated([ONNX.files["files/golden.npz"].split(b"\x93NUMPY")[1][:200]]))
def test_golden_reader_raises_nothing_else_behind_the_archive(payload: bytes) -> None:
    members = [
        (f"00{n}/{side}", b"\x93NUMPY" + payload)
        for n in "01"
        for side in ("in/x.npy", "out/y.npy")
    ]
    manifest = ONNX.manifest
    data = archive_of(members)
    only_rejects(
        BundleRejected, read_golden, data, manifest.golden, manifest.inputs, manifest.outputs
    )


@pytest.mark.parametrize("kind", sorted({type(m) for m in MESSAGES.values()}, key=str))
@settings(fuzz, max_examples=EXAMPLES // 2)
@given(data=mutated([encode(message) for message in MESSAGES.values()]))
def test_message_reader_raises_nothing_else(kind: Any, data: bytes) -> None:
    try:
        message = decode(data, kind)
    except MessageRejected as error:
        assert str(error).isprintable()
        return
    try:
        assert decode(encode(message), kind) == message
    except MessageRejected:  # a shorter notation on the wire than ours
        assert len(data) > 3000


@fuzz
@given(data=mutated([encode_chunk(chunk) for chunk in CHUNKS.values()]))
def test_chunk_reader_raises_nothing_else(data: bytes) -> None:
    only_rejects(MessageRejected, lambda data: encode_chunk(decode_chunk(data)), data)


@fuzz
@given(data=mutated([b"edgekit/v1/demo/device/pi-1/status", b"edgekit/v1/a/device/b/blob"]))
def test_topic_reader_raises_nothing_else(data: bytes) -> None:
    topic = data.decode("utf-8", "replace")
    try:
        assert topics.topic(*topics.parse(topic)) == topic
    except MessageRejected as error:
        assert str(error).isprintable()


@fuzz
@given(data=mutated([profile_text(name) for name in profile_names()]))
def test_profile_reader_raises_nothing_else(data: bytes) -> None:
    only_rejects(Misused, lambda data: parse_profile(data, source="fuzzed.toml"), data)


@fuzz
@given(data=mutated([KEY.public_pem, KEY.private_pem(None)]))
def test_key_reader_raises_nothing_else(data: bytes) -> None:
    only_rejects(Misused, lambda data: load_public_key(data, source="fuzzed.pub"), data)


def only_rejects(error: type[Exception], read: Callable[..., object], *arguments: Any) -> None:
    try:
        read(*arguments)
    except error as caught:
        assert str(caught).isprintable()
