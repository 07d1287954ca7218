"""Writes the corpus beside it: `python tests/contract/corpus/make.py`.

The corpus freezes format 1 in language-neutral files: bundles with the verdict that every reader
must come to, and messages as they are on the wire. What is there once stays: a change of these
files is a change of the format. `index.json` says what each is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
from bundles import ECDSA_KEY, KEY, OTHER_KEY, archive_of, null_bundle, onnx_bundle
from wire_examples import CHUNKS, MESSAGES
from zips import Deviation, zip_bytes

from edgekit_contract.envelope import ENVELOPE_PATH, encode
from edgekit_contract.errors import Reason
from edgekit_contract.messages import encode as encode_message
from edgekit_contract.messages import encode_chunk

HERE = Path(__file__).parent
NULL, ONNX = null_bundle(), onnx_bundle()
MEMBERS = NULL.members(KEY)
FIRST = MEMBERS[1]

ACCEPTED = {
    "null.ekb": (NULL.pack(KEY), "signer.pub"),
    "onnx.ekb": (ONNX.pack(KEY), "signer.pub"),
    "ecdsa.ekb": (NULL.pack(ECDSA_KEY), "ecdsa.pub"),
    "two-signatures.ekb": (NULL.pack(OTHER_KEY, KEY), "signer.pub"),
}
REJECTED = {
    "unsigned.ekb": (
        archive_of([(ENVELOPE_PATH, encode(NULL.manifest)), *MEMBERS[1:]]),
        Reason.UNTRUSTED_SIGNATURE,
    ),
    "stranger.ekb": (NULL.pack(OTHER_KEY), Reason.UNTRUSTED_SIGNATURE),
    "file-changed.ekb": (
        archive_of([MEMBERS[0], (FIRST[0], FIRST[1].swapcase()), *MEMBERS[2:]]),
        Reason.DIGEST_MISMATCH,
    ),
    "file-added.ekb": (archive_of([*MEMBERS, ("files/zz", b"new")]), Reason.UNDECLARED_FILE),
    "path-outside.ekb": (archive_of([*MEMBERS, ("../zz", b"new")]), Reason.UNDECLARED_FILE),
    "file-removed.ekb": (archive_of(MEMBERS[:-1]), Reason.MISSING_FILE),
    "duplicate.ekb": (zip_bytes([*MEMBERS, MEMBERS[-1]]), Reason.NOT_CANONICAL),
    "envelope-last.ekb": (archive_of([*MEMBERS[1:], MEMBERS[0]]), Reason.NOT_CANONICAL),
    "compressed.ekb": (zip_bytes(MEMBERS, Deviation(deflate=True)), Reason.NOT_CANONICAL),
    "data-descriptor.ekb": (
        zip_bytes(MEMBERS, Deviation(data_descriptor=True)),
        Reason.NOT_CANONICAL,
    ),
    "zip64.ekb": (zip_bytes(MEMBERS, Deviation(zip64=True)), Reason.NOT_CANONICAL),
    "symlink.ekb": (zip_bytes(MEMBERS, Deviation(mode=0o120777)), Reason.NOT_CANONICAL),
    "comment.ekb": (zip_bytes(MEMBERS, Deviation(archive_comment=b"x")), Reason.NOT_A_BUNDLE),
    "trailing.ekb": (NULL.pack(KEY) + b"\0", Reason.NOT_A_BUNDLE),
    "truncated.ekb": (NULL.pack(KEY)[:-100], Reason.NOT_A_BUNDLE),
}
KEYS = {"signer.pub": KEY, "ecdsa.pub": ECDSA_KEY}


def files() -> dict[str, bytes]:
    """The whole corpus, by file name."""
    made = {name: key.public_pem for name, key in KEYS.items()}
    made |= {name: data for name, (data, _) in (ACCEPTED | REJECTED).items()}
    made |= {f"{name}.json": encode_message(message) for name, message in MESSAGES.items()}
    made |= {
        f"{name}.hex": encode_chunk(chunk).hex().encode() + b"\n" for name, chunk in CHUNKS.items()
    }
    return made | {"index.json": msgspec.json.format(msgspec.json.encode(index()), indent=2)}


def index() -> dict[str, Any]:
    return {
        "format": 1,
        "bundles": [
            {"file": name, "trust": key, "verdict": "accepted"}
            for name, (_, key) in ACCEPTED.items()
        ]
        + [
            {
                "file": name,
                "trust": "signer.pub",
                "verdict": "rejected",
                "reason": reason.name.lower().replace("_", "-"),
            }
            for name, (_, reason) in REJECTED.items()
        ],
        "messages": [
            {"file": f"{name}.json", "kind": name.partition("-")[0], "is": type(message).__name__}
            for name, message in MESSAGES.items()
        ],
        "chunks": [
            {
                "file": f"{name}.hex",
                "status": chunk.status.name,
                "offset": chunk.offset,
                "total": chunk.total,
                "data": chunk.data.hex(),
            }
            for name, chunk in CHUNKS.items()
        ],
    }


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
