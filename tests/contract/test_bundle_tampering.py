"""Whatever is done to a signed bundle, it is rejected, and for the right reason."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from bundles import ECDSA_KEY, KEY, OTHER_KEY, SmallBundle, archive_of, null_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zips import Deviation, zip_bytes

from edgekit_contract.envelope import ENVELOPE_PATH, Signature, encode
from edgekit_contract.errors import BundleRejected, Reason
from edgekit_contract.trust import open_bundle, verify_archive, verify_directory

BUNDLE = null_bundle()
PACKED = BUNDLE.pack()
MEMBERS = BUNDLE.members(KEY)
FIRST_FILE = next(iter(BUNDLE.files))


def reason_for(path: Path, data: bytes) -> Reason:
    path.write_bytes(data)
    with pytest.raises(BundleRejected) as caught:
        verify_archive(path, [KEY.public])
    assert caught.value.bundle == path.name
    return caught.value.reason


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.ekb"


def test_untouched_bundle_verifies_and_reads_back(path: Path) -> None:
    path.write_bytes(PACKED)
    bundle = verify_archive(path, [OTHER_KEY.public, KEY.public])
    assert {entry.path: bundle.read(entry.path) for entry in bundle.manifest.files} == BUNDLE.files


def test_ecdsa_signature_verifies(path: Path) -> None:
    BUNDLE.write(path, ECDSA_KEY)
    assert verify_archive(path, [ECDSA_KEY.public]).manifest == BUNDLE.manifest
    with pytest.raises(BundleRejected):
        verify_archive(path, [KEY.public])


def test_one_trusted_signature_of_several_is_enough(path: Path) -> None:
    BUNDLE.write(path, OTHER_KEY, ECDSA_KEY, KEY)
    assert verify_archive(path, [KEY.public]).manifest == BUNDLE.manifest


def test_changing_any_byte_is_rejected(path: Path) -> None:
    accepted = []
    for at in range(len(PACKED)):
        changed = bytearray(PACKED)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        try:
            verify_archive(path, [KEY.public])
        except BundleRejected:
            continue
        accepted.append(at)
    assert accepted == []


def test_changing_any_byte_of_the_envelope_is_rejected_when_the_zip_is_made_anew(
    path: Path,
) -> None:
    envelope = BUNDLE.envelope(KEY)
    accepted = []
    for at in range(len(envelope)):
        changed = bytearray(envelope)
        changed[at] ^= 1 << (at % 5)  # keeps most of it Base64
        path.write_bytes(archive_of([(ENVELOPE_PATH, bytes(changed)), *MEMBERS[1:]]))
        try:
            verify_archive(path, [KEY.public])
        except BundleRejected:
            continue
        accepted.append(at)
    assert accepted == []


@pytest.mark.parametrize("name", BUNDLE.files)
def test_changing_a_file_is_rejected_when_the_zip_is_made_anew(path: Path, name: str) -> None:
    changed = [(n, d[:-1] + bytes([d[-1] ^ 1]) if n == name else d) for n, d in MEMBERS]
    assert reason_for(path, archive_of(changed)) is Reason.DIGEST_MISMATCH


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    at=st.integers(0, len(PACKED)),
    cut=st.integers(0, 64),
    put=st.binary(max_size=64),
)
def test_splicing_anything_anywhere_is_rejected(path: Path, at: int, cut: int, put: bytes) -> None:
    changed = PACKED[:at] + put + PACKED[at + cut :]
    if changed == PACKED:
        return
    reason_for(path, changed)


@pytest.mark.parametrize("size", [0, 1, 21, 22, 23, 100, len(PACKED) // 2, len(PACKED) - 1])
def test_truncation_is_rejected(path: Path, size: int) -> None:
    assert reason_for(path, PACKED[:size]) in (Reason.NOT_A_BUNDLE, Reason.NOT_CANONICAL)


def test_reference_writer_of_these_tests_gives_the_canonical_bytes() -> None:
    assert zip_bytes(MEMBERS) == PACKED


@pytest.mark.parametrize(
    ("deviation", "reason"),
    [
        (Deviation(deflate=True), Reason.NOT_CANONICAL),
        (Deviation(data_descriptor=True), Reason.NOT_CANONICAL),
        (Deviation(zip64=True), Reason.NOT_CANONICAL),
        (Deviation(mode=0o120777), Reason.NOT_CANONICAL),  # a symbolic link
        (Deviation(mode=0o040755), Reason.NOT_CANONICAL),  # a directory
        (Deviation(mode=0o100755), Reason.NOT_CANONICAL),
        (Deviation(dos_time=1), Reason.NOT_CANONICAL),
        (Deviation(version=45), Reason.NOT_CANONICAL),
        (Deviation(local_extra=b"ab\1\0x"), Reason.NOT_CANONICAL),
        (Deviation(central_extra=b"ab\1\0x"), Reason.NOT_CANONICAL),
        (Deviation(entry_comment=b"hello"), Reason.NOT_CANONICAL),
        (Deviation(archive_comment=b"hello"), Reason.NOT_A_BUNDLE),
        (Deviation(archive_comment=b"PK\5\6" + bytes(18)), Reason.NOT_CANONICAL),
        (Deviation(gap=b"hidden"), Reason.NOT_CANONICAL),
        (Deviation(prefix=b"#!/bin/sh\n"), Reason.NOT_CANONICAL),
        (Deviation(trailing=b"\0"), Reason.NOT_A_BUNDLE),
        (Deviation(local_name="files/other"), Reason.NOT_CANONICAL),
        (Deviation(disk=1), Reason.NOT_CANONICAL),
    ],
    ids=repr,
)
def test_zip_feature_outside_the_canonical_layout_is_rejected(
    path: Path, deviation: Deviation, reason: Reason
) -> None:
    data = zip_bytes(MEMBERS, deviation)
    assert data != PACKED
    assert reason_for(path, data) is reason


ENVELOPE = MEMBERS[0]
FILES = MEMBERS[1:]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        pytest.param([*MEMBERS, ("files/zz", b"new")], Reason.UNDECLARED_FILE, id="added"),
        pytest.param([*MEMBERS, ("zz", b"new")], Reason.UNDECLARED_FILE, id="added outside files/"),
        pytest.param([*MEMBERS, ("../../etc/passwd", b"x")], Reason.UNDECLARED_FILE, id="dot dot"),
        pytest.param([*MEMBERS, ("/etc/passwd", b"x")], Reason.UNDECLARED_FILE, id="absolute"),
        pytest.param([*MEMBERS, ("files\\x", b"x")], Reason.UNDECLARED_FILE, id="backslash"),
        pytest.param([*MEMBERS, ("files/\x1b[31m", b"x")], Reason.UNDECLARED_FILE, id="escape"),
        pytest.param([*MEMBERS, ("files/", b"")], Reason.UNDECLARED_FILE, id="directory"),
        pytest.param(MEMBERS[:-1], Reason.MISSING_FILE, id="removed"),
        pytest.param([ENVELOPE], Reason.MISSING_FILE, id="all removed"),
        pytest.param(FILES, Reason.MISSING_FILE, id="no envelope"),
        pytest.param([], Reason.MISSING_FILE, id="empty archive"),
        pytest.param([*MEMBERS, MEMBERS[-1]], Reason.NOT_CANONICAL, id="duplicated"),
        pytest.param([*MEMBERS, (FILES[0][0], b"x")], Reason.NOT_CANONICAL, id="same name twice"),
        pytest.param([*MEMBERS, ENVELOPE], Reason.NOT_CANONICAL, id="two envelopes"),
        pytest.param([*FILES, ENVELOPE], Reason.NOT_CANONICAL, id="envelope last"),
        pytest.param([ENVELOPE, *FILES[::-1]], Reason.NOT_CANONICAL, id="reordered"),
        pytest.param(
            [ENVELOPE, ("files/renamed", FILES[0][1]), *FILES[1:]],
            Reason.UNDECLARED_FILE,
            id="renamed",
        ),
        pytest.param(
            [ENVELOPE, (FILES[0][0], FILES[1][1]), (FILES[1][0], FILES[0][1]), *FILES[2:]],
            Reason.NOT_CANONICAL,
            id="contents swapped",
        ),
    ],
)
def test_entries_other_than_the_signed_ones_are_rejected(
    path: Path, members: list[tuple[str, bytes]], reason: Reason
) -> None:
    assert reason_for(path, zip_bytes(members)) is reason


def test_hostile_entry_name_reaches_no_terminal(path: Path) -> None:
    path.write_bytes(zip_bytes([*MEMBERS, ("files/\x1b[2J\r\n" + "x" * 180, b"")]))
    with pytest.raises(BundleRejected) as caught:
        open_bundle(path)
    assert str(caught.value).isprintable()
    assert "\\x1b" in str(caught.value)


def test_name_that_is_not_utf8_is_rejected(path: Path) -> None:
    data = PACKED.replace(FIRST_FILE.encode(), b"\xff" * len(FIRST_FILE))
    assert reason_for(path, data) is Reason.BAD_PATH


@pytest.mark.parametrize(
    "bad",
    [
        "../escape", "/etc/passwd", "files/../../x", "files/./x", "files//x", "files/x/", "",
        "files\\x", "files/.hidden", "files/x y", "files/x\0", "files/é", "outside", "C:/x",
        "files/" + "/".join("abcdefgh"),
    ],
)  # fmt: skip
def test_signed_path_that_leaves_the_bundle_is_rejected(path: Path, bad: str) -> None:
    """Even the signer may not: a stolen key must not write outside a device's slot."""
    first, *others = BUNDLE.manifest.files
    files = (msgspec.structs.replace(first, path=bad), *others)
    assert reason_for(path, forged(files=files)) is Reason.BAD_PATH


def forged(**fields: object) -> bytes:
    """A bundle whose manifest was changed past all checks, signed with the trusted key."""
    manifest = msgspec.structs.replace(BUNDLE.manifest, **fields)
    return archive_of([(ENVELOPE_PATH, sign_unchecked(manifest)), *MEMBERS[1:]])


def sign_unchecked(manifest: object) -> bytes:
    from edgekit_contract import envelope as module

    payload = module._payload(manifest)  # type: ignore[arg-type]
    signature = module.base64.b64encode(KEY.sign(module.pae(payload))).decode()
    return module._encode_wire(payload, (Signature(keyid=KEY.keyid, sig=signature),))


def test_two_paths_that_differ_by_case_are_rejected(path: Path) -> None:
    """They are one file on a case-insensitive file system."""
    bundle = BUNDLE.with_files(BUNDLE.files | {"files/LABELS.txt": b"x"})
    with pytest.raises(BundleRejected):
        bundle.envelope(KEY)
    assert reason_for(path, forged(files=bundle.manifest.files)) is Reason.BAD_MANIFEST


def test_stranger_s_signature_is_rejected(path: Path) -> None:
    assert reason_for(path, BUNDLE.pack(OTHER_KEY)) is Reason.UNTRUSTED_SIGNATURE


def test_no_signature_is_rejected(path: Path) -> None:
    unsigned = archive_of([(ENVELOPE_PATH, encode(BUNDLE.manifest)), *MEMBERS[1:]])
    assert reason_for(path, unsigned) is Reason.UNTRUSTED_SIGNATURE


def test_nobody_is_trusted_when_no_key_is_given(path: Path) -> None:
    path.write_bytes(PACKED)
    with pytest.raises(BundleRejected):
        verify_archive(path, [])


@pytest.mark.parametrize("sig", ["", "AAAA", "é", "not base64!", "Zm9v\n", "Zh==", "A" * 5000])
def test_signature_that_is_no_signature_is_rejected(path: Path, sig: str) -> None:
    envelope = encode(BUNDLE.manifest, [Signature(keyid=KEY.keyid, sig=sig)])
    data = archive_of([(ENVELOPE_PATH, envelope), *MEMBERS[1:]])
    assert reason_for(path, data) is Reason.UNTRUSTED_SIGNATURE


def test_signature_under_another_key_s_id_does_not_count(path: Path) -> None:
    good = signature_of(BUNDLE)
    envelope = encode(BUNDLE.manifest, [Signature(keyid=OTHER_KEY.keyid, sig=good.sig)])
    data = archive_of([(ENVELOPE_PATH, envelope), *MEMBERS[1:]])
    assert reason_for(path, data) is Reason.UNTRUSTED_SIGNATURE


def signature_of(bundle: SmallBundle) -> Signature:
    from edgekit_contract.envelope import decode

    return decode(bundle.envelope(KEY)).signatures[0]


def test_envelope_changed_after_signing_is_rejected(path: Path) -> None:
    envelope = encode(BUNDLE.changed(version="9.9").manifest, [signature_of(BUNDLE)])
    data = archive_of([(ENVELOPE_PATH, envelope), *MEMBERS[1:]])
    assert reason_for(path, data) is Reason.UNTRUSTED_SIGNATURE


def test_files_of_another_signed_bundle_are_rejected(path: Path) -> None:
    other = BUNDLE.with_files(BUNDLE.files | {FIRST_FILE: BUNDLE.files[FIRST_FILE][::-1]})
    data = archive_of([MEMBERS[0], *other.files.items()])
    assert reason_for(path, data) is Reason.DIGEST_MISMATCH


def unpacked(root: Path) -> tuple[Path, str]:
    import hashlib

    for name, data in MEMBERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root, hashlib.sha256(MEMBERS[0][1]).hexdigest()


def test_directory_verifies_by_the_digest_of_its_envelope(tmp_path: Path) -> None:
    root, digest = unpacked(tmp_path)
    bundle = verify_directory(root, envelope_sha256=digest)
    assert bundle.digest == digest
    assert bundle.read(FIRST_FILE) == BUNDLE.files[FIRST_FILE]


@pytest.mark.parametrize("name", [name for name, _ in MEMBERS])
@pytest.mark.parametrize("harm", ["flip", "append", "truncate", "remove", "empty"])
def test_directory_with_a_harmed_file_is_rejected(tmp_path: Path, name: str, harm: str) -> None:
    root, digest = unpacked(tmp_path)
    file = root / name
    data = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(
            {
                "flip": bytes([data[0] ^ 1]) + data[1:],
                "append": data + b"\0",
                "truncate": data[:-1],
                "empty": b"",
            }[harm]
        )
    with pytest.raises(BundleRejected) as caught:
        verify_directory(root, envelope_sha256=digest)
    assert caught.value.reason in (Reason.DIGEST_MISMATCH, Reason.MISSING_FILE)


def test_file_that_changes_after_verification_is_not_given_out(path: Path) -> None:
    path.write_bytes(PACKED)
    bundle = verify_archive(path, [KEY.public])
    data = BUNDLE.files[FIRST_FILE]
    path.write_bytes(PACKED.replace(data, data[::-1]))
    with pytest.raises(BundleRejected):
        bundle.read(FIRST_FILE)
