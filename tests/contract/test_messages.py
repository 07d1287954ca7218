"""The wire's bounds: what a device or a hub may not say is refused where it is parsed."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import MESSAGES

from edgekit_contract import limits
from edgekit_contract.errors import MessageRejected
from edgekit_contract.messages import (
    Ack,
    BundleRef,
    Chunk,
    ChunkStatus,
    Desired,
    Event,
    EventKind,
    Fetch,
    Health,
    Message,
    Reported,
    Status,
    Target,
    cut,
    decode,
    decode_chunk,
    encode,
    encode_chunk,
)

AT = datetime(2026, 3, 1, tzinfo=timezone.utc)
EVENT = Event(stream="s", seq=1, at=AT, kind=EventKind.STARTED, text="")


def test_longest_control_message_passes_and_one_byte_more_does_not() -> None:
    room = limits.MAX_CONTROL_BYTES - len(encode(EVENT))
    longest = msgspec.structs.replace(EVENT, text="x" * room)
    data = encode(longest)
    assert len(data) == limits.MAX_CONTROL_BYTES
    assert decode(data, Event) == longest
    with pytest.raises(MessageRejected):
        encode(msgspec.structs.replace(EVENT, text="x" * (room + 1)))
    with pytest.raises(MessageRejected):
        decode(data + b" ", Event)


def test_desired_state_names_at_most_sixteen_models() -> None:
    models = {f"m{n}": Target(version="1.0") for n in range(limits.MAX_DESIRED_MODELS + 1)}
    over = encode(Desired(generation=1, models=models))
    with pytest.raises(MessageRejected):
        decode(over, Desired)
    models.popitem()
    assert len(decode(encode(Desired(generation=1, models=models)), Desired).models) == 16


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "/a", "A", "a b", "-a", "a-", "a.b", "a\n", "é", "a" * 65, "a\0"],
)
def test_model_name_that_is_no_safe_file_name_is_refused(name: str) -> None:
    """A hostile hub must not choose where a device writes."""
    with pytest.raises(MessageRejected):
        decode(encode(Desired(generation=1, models={name: Target(version="1.0")})), Desired)
    with pytest.raises(MessageRejected):
        decode(encode(msgspec.structs.replace(EVENT, model=name)), Event)


@pytest.mark.parametrize("name", ["a", "a-b", "0", "a" * 64, "x1"])
def test_model_name_within_its_rule_passes(name: str) -> None:
    desired = Desired(generation=1, models={name: Target(version="1.0")})
    assert decode(encode(desired), Desired) == desired


@pytest.mark.parametrize("version", ["", "..", "1/2", "v1", "1.0\n", "1 0", "1" * 32, "1-a-b"])
def test_version_that_is_no_safe_file_name_is_refused(version: str) -> None:
    with pytest.raises(MessageRejected):
        decode(encode(Desired(generation=1, models={"m": Target(version=version)})), Desired)
    with pytest.raises(MessageRejected):
        decode(encode(BundleRef(version=version, digest="", counter=1)), BundleRef)


@pytest.mark.parametrize("value", [0, 1, limits.MAX_JSON_INTEGER])
def test_count_within_json_s_integers_passes(value: int) -> None:
    assert decode(encode(Ack(stream="s", health=value)), Ack).health == value


@pytest.mark.parametrize(
    "value", [b"-1", b"9007199254740992", b"1" * 400, b"1.5", b"1e3", b"true", b'"1"', b"null"]
)
def test_count_outside_json_s_integers_is_refused(value: bytes) -> None:
    with pytest.raises(MessageRejected):
        decode(b'{"stream":"s","health":' + value + b"}", Ack)


@pytest.mark.parametrize(
    "at",
    [
        '"2026-03-01T00:00:00"',
        '"2026-03-01"',
        '"now"',
        "1772323200",
        '""',
        '"2026-13-01T00:00:00Z"',
    ],
)
def test_time_that_is_not_rfc_3339_with_its_zone_is_refused(at: str) -> None:
    with pytest.raises(MessageRejected):
        decode(b'{"online":true,"at":' + at.encode() + b"}", Status)


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"online":true,"battery":{"percent":[1,2]}}', Status) == Status(online=True)


def test_host_metrics_may_be_null() -> None:
    data = b'{"stream":"s","seq":1,"at":"2026-03-01T00:00:00Z","host":{"temperature_c":null}}'
    host = decode(data, Health).host
    assert host is not None
    assert host.temperature_c is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", Status),
        (b"null", Status),
        (b"[]", Status),
        (b"{}", Status),
        (b'{"online":"yes"}', Status),
        (b'{"online":true', Status),
        (b'{"online":true}{}', Status),
        (b'{"online":NaN}', Status),
        (b"\xff\xfe", Status),
        (b'{"generation":1,"models":[]}', Desired),
        (b'{"generation":1,"models":{"m":{}}}', Desired),
        (b'{"generation":1,"models":{"m":"1.0"}}', Desired),
        (b'{"x":' + b"[" * 1990 + b"]" * 1990 + b"}", Status),
        (b'{"resource":"r","length":65537}', Fetch),
        (b'{"resource":"r","length":-1}', Fetch),
        (b'{"resource":"r","offset":-1}', Fetch),
        (b'{"resource":7}', Fetch),
        (b'{"stream":"s","seq":1,"at":"2026-03-01T00:00:00Z","kind":"sleep","text":""}', Event),
    ],
)
def test_malformed_message_is_refused(data: bytes, kind: type[Message]) -> None:
    with pytest.raises(MessageRejected):
        decode(data, kind)


def test_text_is_cut_to_what_a_message_may_carry() -> None:
    assert cut("x" * limits.MAX_TEXT_CHARS) == "x" * limits.MAX_TEXT_CHARS
    assert len(cut("x" * 1000)) == limits.MAX_TEXT_CHARS


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_message_with_every_field_set_fits_the_wire(message: Message) -> None:
    assert len(encode(message)) < limits.MAX_CONTROL_BYTES // 2


@given(st.data())
def test_message_survives_the_wire(data: st.DataObject) -> None:
    name = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?\Z")
    version = st.from_regex(r"\A[0-9][0-9A-Za-z.+]{0,10}\Z")
    desired = Desired(
        generation=data.draw(st.integers(0, limits.MAX_JSON_INTEGER)),
        models={
            model: Target(version=data.draw(version))
            for model in data.draw(st.sets(name, max_size=limits.MAX_DESIRED_MODELS))
        },
    )
    assert decode(encode(desired), Desired) == desired


def frame(
    *,
    magic: bytes = b"EKC1",
    status: int = 0,
    offset: int = 0,
    total: int = 5,
    data: bytes = b"hello",
) -> bytes:
    pad = b"\0\0\0"
    return (
        magic + bytes([status]) + pad + offset.to_bytes(8, "big") + total.to_bytes(8, "big") + data
    )


def test_frame_made_by_hand_decodes() -> None:
    expected = Chunk(status=ChunkStatus.OK, offset=0, total=5, data=b"hello")
    assert decode_chunk(frame()) == expected
    assert encode_chunk(expected) == frame()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        frame()[:23],
        frame(magic=b"EKC2"),
        frame(status=3),
        frame(status=255),
        frame(total=4),
        frame(offset=1),
        frame(offset=2**64 - 1, total=2**64 - 1),
        frame(data=bytes(limits.MAX_CHUNK_BYTES + 1), total=2**40),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_frame_that_does_not_hold_together_is_refused(data: bytes) -> None:
    with pytest.raises(MessageRejected):
        decode_chunk(data)


def test_longest_chunk_passes_and_a_longer_one_is_the_caller_s_bug() -> None:
    data = bytes(limits.MAX_CHUNK_BYTES)
    chunk = Chunk(status=ChunkStatus.OK, offset=0, total=2**32, data=data)
    assert decode_chunk(encode_chunk(chunk)) == chunk
    with pytest.raises(RuntimeError):
        encode_chunk(Chunk(status=ChunkStatus.OK, total=2**32, data=data + b"x"))


@given(
    status=st.sampled_from(ChunkStatus),
    offset=st.integers(0, 2**63),
    rest=st.integers(0, 2**62),
    data=st.binary(max_size=300),
)
def test_chunk_survives_the_wire(status: ChunkStatus, offset: int, rest: int, data: bytes) -> None:
    chunk = Chunk(status=status, offset=offset, total=offset + len(data) + rest, data=data)
    assert decode_chunk(encode_chunk(chunk)) == chunk


def test_defaults_are_left_out_and_put_back() -> None:
    reported: Any = MESSAGES["reported"]
    bare = Reported(at=AT, generation=0, device=reported.device)
    data = encode(bare)
    assert b"models" not in data
    assert b"capabilities" not in data
    assert decode(data, Reported) == bare
