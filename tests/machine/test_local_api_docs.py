"""docs/local-api.md is true: its examples run against a real worker."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import msgspec
from bundles import SmallBundle, null_bundle
from parts import need
from workers import listening, unpack, working

from edgekit_contract.manifest import TensorSpec
from edgekit_runtime.golden import GoldenVector, golden_bytes, read_golden

PAGE = Path(__file__).parents[2] / "docs" / "local-api.md"


def iris() -> SmallBundle:
    """The null bundle under the page's names."""
    bundle = null_bundle()
    manifest = bundle.manifest
    features = TensorSpec(name="features", dtype="float32", shape=("batch", 4))
    data = bundle.files[manifest.golden.path]
    vectors = [
        GoldenVector(inputs={"features": vector.inputs["x"]}, outputs=vector.outputs)
        for vector in read_golden(data, manifest.golden, manifest.inputs, manifest.outputs)
    ]
    model = msgspec.json.encode({"inputs": [features], "scale": 1.0})
    return bundle.changed(name="iris", inputs=(features,)).with_files(
        bundle.files | {manifest.model: model, manifest.golden.path: golden_bytes(vectors)}
    )


def example(language: str) -> str:
    """The page's only block in a language."""
    (block,) = re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(block)


def test_the_pages_examples_give_what_the_page_says(tmp_path: Path) -> None:
    need("curl")
    digest = unpack(iris(), tmp_path / "slot")
    (tmp_path / "run").mkdir()
    with (
        listening(tmp_path / "run", "iris.sock") as listeners,
        working(tmp_path / "slot", digest, listeners) as worker,
    ):
        worker.serve()
        answered = subprocess.run(
            ["sh", "-c", example("sh")], cwd=tmp_path, stdout=subprocess.PIPE, check=True
        )
        assert json.loads(answered.stdout) == json.loads(example("json"))
        names = {"PORT": listeners.port}
        exec(example("python"), names)
        assert names["y"].tolist() == [10.0, 10.0]
        names["device"].close()
