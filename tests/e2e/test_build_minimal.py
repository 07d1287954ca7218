"""A profile with a minimal build of onnxruntime gets a model that such a build reads, and the list
of operators to build it with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from build_requests import DIGITS, host_profile
from bundles import KEY
from command_line import edgekit

from edgekit.build import BuildRequest, build
from edgekit_contract.profile import Profile, RuntimeKind
from edgekit_contract.trust import verify_archive
from edgekit_converters.required_operators import FILENAME
from edgekit_runtime.backend_onnxruntime import is_ort_format
from edgekit_runtime.golden import check_golden, read_golden
from edgekit_runtime.session import open_session


def minimal_profile() -> Profile:
    profile = host_profile()
    runtimes = tuple(
        msgspec.structs.replace(runtime, minimal=True)
        for runtime in profile.runtimes
        if runtime.kind is RuntimeKind.ONNXRUNTIME
    )
    return msgspec.structs.replace(profile, runtimes=runtimes)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("minimal")
    result = build(
        BuildRequest(
            model=DIGITS / "digits.onnx",
            profiles=(minimal_profile(),),
            name="digits",
            version="1.0",
            output=directory,
            recipes=("float32",),
            search_time_s=1.0,
            key=KEY,
        )
    )
    (built,) = result.built
    assert any("own format" in remark for remark in built.report.remarks)
    return built.bundle.path


def test_a_minimal_build_gets_its_own_format_with_golden_vectors(
    bundle: Path, tmp_path: Path
) -> None:
    opened = verify_archive(bundle, [KEY.public])
    manifest = opened.manifest
    model = tmp_path / "model"
    model.write_bytes(opened.read(manifest.model))
    assert is_ort_format(model)
    assert manifest.requires.min_runtime_version >= "1.20"
    vectors = read_golden(
        opened.read(manifest.golden.path), manifest.golden, manifest.inputs, manifest.outputs
    )
    session = open_session(RuntimeKind.ONNXRUNTIME, model)
    assert check_golden(session, manifest.golden, vectors) is None


def test_the_bundle_lists_the_operators_and_types_to_build(bundle: Path) -> None:
    text = verify_archive(bundle, [KEY.public]).read(f"files/{FILENAME}").decode()
    header, *lines = text.splitlines()
    assert header == "# Operators and types of model.onnx, in onnxruntime's format"
    assert 'ai.onnx;13;Gemm{"inputs": {"0": ["float"]}}' in lines
    assert any(line.startswith("com.microsoft;1;FusedConv") for line in lines)
    assert "/" not in text, "no path of the machine that built it"


def test_inspect_says_what_the_list_is_for(bundle: Path) -> None:
    answer = edgekit("inspect", bundle)
    assert answer.code == 0
    assert f"--include_ops_by_config files/{FILENAME}" in answer.out
