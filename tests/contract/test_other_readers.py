"""The format needs none of our code: stock tools read, verify and check a bundle."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from parts import need
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

CORPUS = Path(__file__).parent / "corpus"
SIGNED = [("null.ekb", "signer.pub"), ("onnx.ekb", "signer.pub"), ("ecdsa.ekb", "ecdsa.pub")]


def envelope_of(bundle: str) -> dict[str, Any]:
    with zipfile.ZipFile(CORPUS / bundle) as archive:
        parsed: dict[str, Any] = json.loads(archive.read("bundle.dsse.json"))
    return parsed


def statement_of(bundle: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(base64.b64decode(envelope_of(bundle)["payload"]))
    return parsed


@pytest.mark.parametrize(("bundle", "key"), SIGNED)
def test_openssl_verifies_the_signature(tmp_path: Path, bundle: str, key: str) -> None:
    openssl = need("openssl")
    envelope = envelope_of(bundle)
    payload = base64.b64decode(envelope["payload"])
    signed = f"DSSEv1 28 application/vnd.in-toto+json {len(payload)} ".encode() + payload
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", CORPUS / key, "-rawin"]
    files = ["-in", tmp_path / "signed", "-sigfile", tmp_path / "sig"]
    digest = ["-digest", "sha256"] if key == "ecdsa.pub" else []
    subprocess.run([*command, *files, *digest], check=True, capture_output=True)
    (tmp_path / "signed").write_bytes(signed + b" ")
    changed = subprocess.run([*command, *files, *digest], check=False, capture_output=True)
    assert changed.returncode != 0


@pytest.mark.parametrize(("bundle", "key"), SIGNED)
def test_securesystemslib_reads_the_envelope_as_dsse(bundle: str, key: str) -> None:
    envelope = Envelope.from_dict(envelope_of(bundle))
    (keyid,) = (signature["keyid"] for signature in envelope_of(bundle)["signatures"])
    public = load_pem_public_key((CORPUS / key).read_bytes())
    assert envelope.verify([SSlibKey.from_crypto(public, keyid=keyid)], threshold=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bundle", "key"), SIGNED)
def test_every_digest_is_that_of_the_zip_s_entry(bundle: str, key: str) -> None:
    statement = statement_of(bundle)
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    declared = {f["path"]: f["sha256"] for f in statement["predicate"]["files"]}
    with zipfile.ZipFile(CORPUS / bundle) as archive:
        names = archive.namelist()
        held = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names[1:]}
    assert names[0] == "bundle.dsse.json"
    assert subjects == declared == held


def test_numpy_reads_the_golden_vectors() -> None:
    with zipfile.ZipFile(CORPUS / "onnx.ekb") as archive:
        data = archive.read("files/golden.npz")
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        assert npz["000/in/x"].tolist() == [[1, 2]]
        assert npz["000/out/y"].tolist() == [[1, 3, 2]]
