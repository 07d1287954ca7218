"""Every bound on untrusted input, once, by name and with its unit."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Bundle (docs/bundle.md)
MAX_BUNDLE_BYTES: Final = 4 * GIB - 1
"""A ZIP without zip64 ends here."""
MAX_BUNDLE_FILES: Final = 256
MAX_PATH_BYTES: Final = 200
MAX_ENVELOPE_BYTES: Final = 4 * MIB
BLOCK_BYTES: Final = 1 * MIB
"""Size of the blocks whose SHA-256 the manifest lists: the unit of verifying and resuming."""
MAX_SIGNATURES: Final = 16
MAX_KEY_BYTES: Final = 64 * KIB
MAX_PROFILE_BYTES: Final = 64 * KIB
MAX_TENSORS: Final = 256
MAX_RANK: Final = 16
MAX_AXIS: Final = 2**31 - 1
MAX_GOLDEN_BYTES: Final = 256 * MIB
MAX_GOLDEN_VECTORS: Final = 64
MAX_REPORT_BYTES: Final = 16 * MIB
MAX_NOTEBOOK_BYTES: Final = 16 * MIB
MAX_BENCH_S: Final = 120.0
"""A device may be asked to run a bundle for so long."""
MAX_THREADS: Final = 256
MAX_IMAGE_SIDE: Final = 8192
"""Pixels: a preprocess step may not ask a device for more."""
MAX_SAMPLE_RATE_HZ: Final = 768_000
MAX_WINDOW_SAMPLES: Final = 2**26

# Wire (docs/wire.md)
MAX_CONTROL_BYTES: Final = 4_000
"""Longest control message (JSON); microcontrollers have buffers of 4 KiB."""
MAX_CHUNK_BYTES: Final = 64 * KIB
"""Most data in one blob message; dearer per byte above (measured)."""
MAX_CORRELATION_BYTES: Final = 64
"""MQTT correlation data of a `fetch`: they come back beside a chunk, in one bounded packet."""
MAX_DESIRED_MODELS: Final = 16
MAX_JSON_INTEGER: Final = 2**53 - 1
MAX_TEXT_CHARS: Final = 200
"""Free text inside a control message is cut to this."""

# Trust metadata (TUF)
MAX_METADATA_BYTES: Final = 8 * MIB

# Local API (docs/local-api.md)
MAX_REQUEST_BYTES: Final = 64 * MIB
MAX_JSON_REQUEST_BYTES: Final = 16 * MIB
"""A number in JSON may take 2 bytes of text and 32 of memory; binary data have no such cost."""
MAX_HEADER_JSON_BYTES: Final = 1 * MIB
"""JSON before binary tensor data, which holds no tensor itself."""
MAX_HTTP_HEAD_BYTES: Final = 64 * KIB
MAX_BODIES_BYTES: Final = 2 * MAX_REQUEST_BYTES
"""Request bodies held at a time, over all connections."""
MAX_CONNECTIONS: Final = 128
"""Further ones wait in the listening socket's backlog."""
MAX_PIPELINED: Final = 8
"""Requests of one connection that wait for an answer before no more of it is read."""
MAX_QUEUED_INFERENCES: Final = 64
