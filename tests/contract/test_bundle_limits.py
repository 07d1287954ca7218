"""Each bound of `limits` on a bundle: at it is accepted, one over is rejected."""

from __future__ import annotations

import base64
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bundles import KEY, SmallBundle, archive_of, file_entry, null_bundle

from edgekit_contract import limits
from edgekit_contract.archive import archive_bytes, open_archive, write_archive
from edgekit_contract.envelope import ENVELOPE_PATH, Signature, decode, encode
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.manifest import (
    AudioPreprocess,
    Color,
    FileEntry,
    ImagePreprocess,
    Manifest,
    Postprocess,
    Provenance,
    TensorSpec,
    Tolerance,
    check_manifest,
)
from edgekit_contract.profile import RuntimeKind
from edgekit_contract.trust import open_bundle, verify_archive

BUNDLE = null_bundle()
MANIFEST = BUNDLE.manifest


def rejected(call: Callable[[], object]) -> Reason:
    with pytest.raises(BundleRejected) as caught:
        call()
    return caught.value.reason


def with_declared(*entries: FileEntry) -> Manifest:
    """The manifest, declaring more files than there are."""
    files = tuple(sorted((*MANIFEST.files, *entries), key=lambda entry: entry.path))
    needs = msgspec.structs.replace(
        MANIFEST.requires, unpacked_bytes=sum(entry.size for entry in files)
    )
    return msgspec.structs.replace(MANIFEST, files=files, requires=needs)


def declared(path: str, size: int) -> FileEntry:
    count = -(-size // limits.BLOCK_BYTES)
    return FileEntry(path=path, size=size, sha256="0" * 64, blocks=("0" * 64,) * count)


def entry(**fields: Any) -> FileEntry:
    base: dict[str, Any] = {"path": "files/a", "size": 0, "sha256": "0" * 64, "blocks": ()}
    return FileEntry(**(base | fields))


def test_bundle_of_4_gib_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "huge.ekb"
    with path.open("wb") as stream:
        os.ftruncate(stream.fileno(), limits.MAX_BUNDLE_BYTES + 1)  # sparse: takes no room
    assert rejected(lambda: open_bundle(path)) is Reason.TOO_LARGE


def test_bundle_of_4_gib_is_refused_when_planning() -> None:
    head = archive_bytes([("a", 0)])
    most = limits.MAX_BUNDLE_BYTES - head
    assert archive_bytes([("a", most)]) == limits.MAX_BUNDLE_BYTES
    assert rejected(lambda: archive_bytes([("a", most + 1)])) is Reason.TOO_LARGE
    assert rejected(lambda: archive_bytes([("a", 2**40)])) is Reason.TOO_LARGE
    assert rejected(lambda: archive_bytes([("a", 2**31), ("b", 2**31)])) is Reason.TOO_LARGE


def test_file_over_4_gib_is_not_written(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as stream:
        os.ftruncate(stream.fileno(), 2**20)
    out = tmp_path / "out"
    members: list[tuple[str, Path | bytes]] = [("a", big)] * 4097
    with out.open("wb") as stream:
        assert rejected(lambda: write_archive(stream, members)) is Reason.TOO_LARGE
    assert out.stat().st_size == 0


def test_more_files_than_allowed_are_rejected(tmp_path: Path) -> None:
    most = limits.MAX_BUNDLE_FILES - len(BUNDLE.files)
    extra = {f"files/x{index:03}": b"" for index in range(most + 1)}
    full = BUNDLE.with_files(BUNDLE.files | dict(list(extra.items())[:most]))
    path = full.write(tmp_path / "full.ekb")
    assert len(verify_archive(path, [KEY.public]).manifest.files) == limits.MAX_BUNDLE_FILES
    over = BUNDLE.with_files(BUNDLE.files | extra)
    assert rejected(lambda: over.envelope(KEY)) is Reason.TOO_LARGE
    path.write_bytes(archive_of([(ENVELOPE_PATH, full.envelope(KEY)), *over.files.items()]))
    assert rejected(lambda: open_archive(path)) is Reason.TOO_LARGE


def test_path_longer_than_allowed_is_rejected(tmp_path: Path) -> None:
    longest = "files/" + "a" * 97 + "/" + "b" * (limits.MAX_PATH_BYTES - 6 - 97 - 1)
    assert len(longest) == limits.MAX_PATH_BYTES
    longest_bundle = BUNDLE.with_files(BUNDLE.files | {longest: b"x"})
    path = longest_bundle.write(tmp_path / "long.ekb")
    assert verify_archive(path, [KEY.public]).read(longest) == b"x"
    over = BUNDLE.with_files(BUNDLE.files | {longest + "b": b"x"})
    assert rejected(lambda: over.envelope(KEY)) is Reason.BAD_PATH


def test_envelope_longer_than_allowed_is_rejected(tmp_path: Path) -> None:
    raw = b" " * (limits.MAX_ENVELOPE_BYTES + 1)
    assert rejected(lambda: decode(raw)) is Reason.TOO_LARGE
    path = tmp_path / "long.ekb"
    path.write_bytes(archive_of([(ENVELOPE_PATH, raw)]))
    assert rejected(lambda: open_bundle(path)) is Reason.TOO_LARGE


def test_more_signatures_than_allowed_are_rejected() -> None:
    signatures = [Signature(keyid=str(n), sig="") for n in range(limits.MAX_SIGNATURES + 1)]
    assert len(decode(encode(MANIFEST, signatures[:-1])).signatures) == limits.MAX_SIGNATURES
    assert rejected(lambda: decode(encode(MANIFEST, signatures))) is Reason.TOO_LARGE


def tensors(count: int) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=f"t{n}", dtype="int8", shape=(1,)) for n in range(count))


def image(**fields: Any) -> tuple[ImagePreprocess]:
    return (ImagePreprocess(**({"input": "x", "height": 8, "width": 8} | fields)),)


def audio(**fields: Any) -> tuple[AudioPreprocess]:
    base: dict[str, Any] = {"input": "x", "sample_rate_hz": 16_000, "window_samples": 512}
    return (AudioPreprocess(**(base | fields)),)


def golden(**fields: Any) -> Any:
    return msgspec.structs.replace(MANIFEST.golden, **fields)


def spec(**fields: Any) -> tuple[TensorSpec]:
    base: dict[str, Any] = {"name": "x", "dtype": "float32", "shape": (1,)}
    return (TensorSpec(**(base | fields)),)


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": tensors(limits.MAX_TENSORS)},
        {"inputs": spec(shape=(1,) * limits.MAX_RANK)},
        {"inputs": spec(shape=(limits.MAX_AXIS,))},
        {"inputs": spec(shape=(0,))},
        {"inputs": spec(shape=())},
        {"threads": limits.MAX_THREADS},
        {"golden": golden(count=limits.MAX_GOLDEN_VECTORS)},
        {"golden": golden(tolerances={"y": Tolerance(absolute=0, relative=0)})},
        {"preprocess": image(height=limits.MAX_IMAGE_SIDE, width=1)},
        {"preprocess": image(mean=(0, 0, 0), std=(1, 1, 1))},
        {"preprocess": image(color=Color.GRAY)},
        {"preprocess": audio(sample_rate_hz=limits.MAX_SAMPLE_RATE_HZ)},
        {"preprocess": audio(window_samples=limits.MAX_WINDOW_SAMPLES)},
        {"postprocess": (Postprocess(output="y"),)},
        {"labels": None},
    ],
    ids=repr,
)
def test_manifest_at_its_bound_is_accepted(fields: dict[str, Any]) -> None:
    manifest = msgspec.structs.replace(MANIFEST, **fields)
    assert decode(encode(manifest)).manifest == check_manifest(manifest)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 2}, Reason.UNKNOWN_FORMAT),
        ({"format": 0}, Reason.UNKNOWN_FORMAT),
        ({"name": "../x"}, Reason.BAD_PATH),
        ({"version": "1.0/.."}, Reason.BAD_PATH),
        ({"profile": "Demo"}, Reason.BAD_PATH),
        ({"files": ()}, Reason.TOO_LARGE),
        ({"files": MANIFEST.files[::-1]}, Reason.BAD_MANIFEST),
        ({"files": (*MANIFEST.files, MANIFEST.files[-1])}, Reason.BAD_MANIFEST),
        ({"files": MANIFEST.files[1:]}, Reason.BAD_MANIFEST),
        ({"model": "files/none"}, Reason.MISSING_FILE),
        ({"labels": "files/none"}, Reason.MISSING_FILE),
        ({"golden": golden(path="files/none")}, Reason.MISSING_FILE),
        ({"golden": golden(count=0)}, Reason.BAD_MANIFEST),
        ({"golden": golden(count=-1)}, Reason.BAD_MANIFEST),
        ({"golden": golden(count=limits.MAX_GOLDEN_VECTORS + 1)}, Reason.BAD_MANIFEST),
        ({"golden": golden(tolerances={})}, Reason.BAD_MANIFEST),
        ({"golden": golden(tolerances={"z": Tolerance(absolute=0)})}, Reason.BAD_MANIFEST),
        ({"golden": golden(top1=("z",))}, Reason.BAD_MANIFEST),
        *(
            ({"golden": golden(tolerances={"y": tolerance})}, Reason.BAD_MANIFEST)
            for tolerance in (
                Tolerance(absolute=-1e-9),
                Tolerance(absolute=0, relative=-1),
                Tolerance(absolute=float("nan")),
                Tolerance(absolute=float("inf")),
                Tolerance(absolute=0, relative=float("inf")),
            )
        ),
        ({"inputs": ()}, Reason.BAD_MANIFEST),
        ({"outputs": ()}, Reason.BAD_MANIFEST),
        ({"inputs": tensors(limits.MAX_TENSORS + 1)}, Reason.BAD_MANIFEST),
        ({"inputs": tensors(1) * 2}, Reason.BAD_MANIFEST),
        ({"inputs": spec(shape=(1,) * (limits.MAX_RANK + 1))}, Reason.BAD_MANIFEST),
        ({"inputs": spec(shape=(-1,))}, Reason.BAD_MANIFEST),
        ({"inputs": spec(shape=(limits.MAX_AXIS + 1,))}, Reason.BAD_MANIFEST),
        ({"inputs": spec(dtype="object")}, Reason.BAD_MANIFEST),
        ({"threads": 0}, Reason.BAD_MANIFEST),
        ({"threads": limits.MAX_THREADS + 1}, Reason.BAD_MANIFEST),
        ({"runtime": RuntimeKind.LITERT}, Reason.BAD_MANIFEST),
        *(
            ({"requires": msgspec.structs.replace(MANIFEST.requires, **needs)}, Reason.BAD_MANIFEST)
            for needs in (
                {"peak_ram_bytes": -1},
                {"peak_ram_bytes": limits.MAX_JSON_INTEGER + 1},
                {"unpacked_bytes": 0},
            )
        ),
        *(
            ({"preprocess": steps}, Reason.BAD_MANIFEST)
            for steps in (
                image(input="z"),
                image(height=limits.MAX_IMAGE_SIDE + 1),
                image(width=0),
                image(std=(0.0,)),
                image(std=()),
                image(mean=(1, 2)),
                image(mean=(1, 2, 3), color=Color.GRAY),
                image(scale=float("inf")),
                audio(sample_rate_hz=0),
                audio(sample_rate_hz=limits.MAX_SAMPLE_RATE_HZ + 1),
                audio(window_samples=limits.MAX_WINDOW_SAMPLES + 1),
            )
        ),
        ({"postprocess": (Postprocess(output="z"),)}, Reason.BAD_MANIFEST),
        ({"postprocess": (Postprocess(output="y", top_k=0),)}, Reason.BAD_MANIFEST),
    ],
    ids=repr,
)
def test_manifest_over_its_bound_is_rejected(fields: dict[str, Any], reason: Reason) -> None:
    manifest = msgspec.structs.replace(MANIFEST, **fields)
    assert rejected(lambda: check_manifest(manifest)) is reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (declared("files/a", limits.MAX_BUNDLE_BYTES + 1), Reason.TOO_LARGE),
        (entry(size=-1), Reason.TOO_LARGE),
        (entry(size=1), Reason.BAD_MANIFEST),
        (entry(blocks=("0" * 64,)), Reason.BAD_MANIFEST),
        (entry(sha256="0" * 63), Reason.BAD_MANIFEST),
        (entry(sha256="G" * 64), Reason.BAD_MANIFEST),
        (entry(sha256="A" * 64), Reason.BAD_MANIFEST),
        (entry(size=1, blocks=("",)), Reason.BAD_MANIFEST),
    ],
    ids=repr,
)
def test_file_entry_that_does_not_hold_together_is_rejected(bad: FileEntry, reason: Reason) -> None:
    assert rejected(lambda: check_manifest(with_declared(bad))) is reason


def test_golden_file_longer_than_allowed_is_rejected() -> None:
    golden_file = declared("files/a", limits.MAX_GOLDEN_BYTES + 1)
    manifest = with_declared(golden_file)
    manifest = msgspec.structs.replace(manifest, golden=golden(path="files/a"))
    assert rejected(lambda: check_manifest(manifest)) is Reason.TOO_LARGE


def test_file_of_several_blocks_is_checked_block_by_block(tmp_path: Path) -> None:
    data = bytes(limits.BLOCK_BYTES) + b"\1" * limits.BLOCK_BYTES + b"tail"
    bundle = BUNDLE.with_files(BUNDLE.files | {"files/weights.bin": data})
    path = bundle.write(tmp_path / "blocks.ekb")
    pieces = list(verify_archive(path, [KEY.public]).pieces("files/weights.bin"))
    assert [len(piece) for piece in pieces] == [limits.BLOCK_BYTES, limits.BLOCK_BYTES, 4]
    assert b"".join(pieces) == data
    assert len(file_entry("files/weights.bin", data).blocks) == 3


def payload_of(bundle: SmallBundle) -> bytes:
    return decode(encode(bundle.manifest)).payload


def envelope_around(payload: bytes) -> bytes:
    return msgspec.json.encode(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [],
        }
    )


def test_envelope_made_by_hand_is_the_encoding() -> None:
    assert envelope_around(payload_of(BUNDLE)) == encode(MANIFEST)


MALFORMED = [
    (b'"format":1', b'"format":1.5'),
    (b'"format":1', b'"format":true'),
    (b'"format":1', b'"format":' + b"9" * 5000),
    (b'"threads":1', b'"threads":NaN'),
    (b'"absolute":0.00001', b'"absolute":NaN'),
    (b'"absolute":0.00001', b'"absolute":1e999'),
    (b'"absolute":0.00001', b'"absolute":Infinity'),
    (b'"runtime":"null"', b'"runtime":"Java"'),
    (b'"name":"tiny"', b'"nom":"tiny"'),
    (b'{"format"', b'{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b',"format"'),
    (b'{"format"', b'{"deep":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b',"format"'),
    (b'"tiny"', b'"\\ud800"'),
    (b'"tiny"', b'"\\ud800x"'),
    (b'"tiny"', b'"\xff"'),
]
OTHERWISE = [
    (b'"format":1', b'"format":2', Reason.UNKNOWN_FORMAT),
    (b'"format":1,"name":"tiny"', b'"format":2,"title":{}', Reason.UNKNOWN_FORMAT),
    (b"/Statement/v1", b"/Statement/v2", Reason.UNKNOWN_FORMAT),
    (b"https://edgekit.dev/bundle/v1", b"https://slsa.dev/provenance/v1", Reason.UNKNOWN_FORMAT),
    (b'"subject":[', b'"subject":[{"name":"x","digest":{}},', Reason.BAD_MANIFEST),
    (b'"digest":{"sha256"', b'"digest":{"md5"', Reason.BAD_MANIFEST),
]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [*((old, new, Reason.BAD_ENVELOPE) for old, new in MALFORMED), *OTHERWISE],
    ids=lambda value: repr(value)[:40],
)
def test_payload_that_is_no_manifest_of_this_format_is_rejected(
    old: bytes, new: bytes, reason: Reason
) -> None:
    payload = payload_of(BUNDLE)
    assert old in payload
    payload = payload.replace(old, new, 1)
    assert rejected(lambda: decode(envelope_around(payload))) is reason


def test_unknown_field_of_a_manifest_is_ignored() -> None:
    """A newer build may add some; what changes a device's duties raises the format."""
    payload = payload_of(BUNDLE).replace(b'{"format"', b'{"colour":"red","format"', 1)
    assert decode(envelope_around(payload)).manifest == MANIFEST


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b" ",
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b":[]", b": []"),
        lambda raw: raw.replace(b'"payload":', b'"payload":"","payload":', 1),
        lambda raw: raw.replace(b'"signatures":[]', b'"signatures":[],"x":1'),
        lambda raw: raw.replace(b'"signatures":[]', b'"signatures":[{"sig":""}]'),
        lambda raw: raw.replace(b"/", b"\\/", 1),
        lambda raw: raw[:-1],
        lambda raw: b"",
        lambda raw: b"null",
        lambda raw: b"\xef\xbb\xbf" + raw,
        lambda raw: raw.decode().encode("utf-16"),
    ],
)
def test_envelope_has_one_encoding(change: Callable[[bytes], bytes]) -> None:
    raw = encode(MANIFEST)
    assert rejected(lambda: decode(change(raw))) is Reason.BAD_ENVELOPE


def test_payload_type_of_another_kind_is_rejected() -> None:
    raw = encode(MANIFEST).replace(b"vnd.in-toto+json", b"vnd.other+json")
    assert rejected(lambda: decode(raw)) is Reason.UNKNOWN_FORMAT


def test_builder_can_not_encode_what_readers_reject() -> None:
    broken = dataclasses.replace(BUNDLE, manifest=msgspec.structs.replace(MANIFEST, threads=0))
    assert rejected(lambda: broken.envelope(KEY)) is Reason.BAD_MANIFEST


def test_provenance_survives_the_envelope() -> None:
    origin = Provenance(
        source_name="modèle.onnx",
        source_sha256="0" * 64,
        recipe="int8",
        calibration_sha256="1" * 64,
        git_commit="abc",
        tools={"onnx": "1.23"},
    )
    manifest = msgspec.structs.replace(MANIFEST, provenance=origin)
    assert decode(encode(manifest)).manifest.provenance == origin
