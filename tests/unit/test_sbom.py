"""The bill of materials of a bundle, against CycloneDX's own schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from parts import need_package

from edgekit.build.sbom import SBOM_PATH, sbom_bytes
from edgekit_contract.manifest import FileEntry, Provenance
from edgekit_contract.profile import RuntimeKind

WHOLE = Provenance(
    source_name="digits.onnx",
    source_sha256="a" * 64,
    recipe="int8-static/per-channel/u8s8/minmax",
    calibration_sha256="b" * 64,
    git_commit="c" * 40,
    tools={"onnx": "1.23.0", "edgekit": "0.1.0+local"},
)


def entry(path: str, digit: str) -> FileEntry:
    return FileEntry(path=path, size=1, sha256=digit * 64, blocks=(digit * 64,))


FILES = (entry("files/model.onnx", "1"), entry("files/golden.npz", "2"))


def document(provenance: Provenance = WHOLE, *files: FileEntry) -> bytes:
    return sbom_bytes(
        name="digits",
        version="1.0",
        profile="raspberry-pi-4",
        runtime=RuntimeKind.ONNXRUNTIME,
        min_runtime_version="1.12",
        model="files/model.onnx",
        files=files or FILES,
        provenance=provenance,
    )


@pytest.mark.parametrize(
    "provenance",
    [WHOLE, Provenance(source_name="m.onnx", source_sha256="d" * 64, recipe="float32")],
)
def test_bill_of_materials_is_cyclonedx(provenance: Provenance) -> None:
    need_package("cyclonedx", install="cyclonedx-python-lib[json-validation]")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(document(provenance).decode()) is None
    broken = document(provenance).decode().replace('"library"', '"librarian"')
    assert validator.validate_str(broken) is not None


def test_bill_names_the_model_its_source_the_runtime_and_the_tools() -> None:
    bill: dict[str, Any] = json.loads(document())
    model = bill["metadata"]["component"]
    assert (model["name"], model["version"]) == ("digits", "1.0")
    assert model["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    (source,) = model["pedigree"]["ancestors"]
    assert source["hashes"][0]["content"] == "a" * 64
    assert source["pedigree"]["commits"] == [{"uid": "c" * 40}]
    tools = [(t["name"], t["purl"]) for t in bill["metadata"]["tools"]["components"]]
    assert tools == [
        ("edgekit", "pkg:pypi/edgekit@0.1.0%2Blocal"),
        ("onnx", "pkg:pypi/onnx@1.23.0"),
    ]
    runtime, golden = bill["components"]
    assert (runtime["name"], runtime["properties"][0]["value"]) == ("onnxruntime", "1.12")
    assert (golden["name"], golden["hashes"][0]["content"]) == ("files/golden.npz", "2" * 64)
    assert SBOM_PATH not in document().decode()


def test_same_facts_give_the_same_bytes_in_whatever_order() -> None:
    turned = Provenance(
        source_name="digits.onnx",
        source_sha256="a" * 64,
        recipe=WHOLE.recipe,
        calibration_sha256="b" * 64,
        git_commit="c" * 40,
        tools=dict(reversed(WHOLE.tools.items())),
    )
    assert document() == document(turned, *reversed(FILES))
