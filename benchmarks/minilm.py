"""all-MiniLM-L6-v2, a sentence encoder (Apache-2.0): from its package's weights to an ONNX file,
and English sentences of this machine to feed it.

Architecture: BERT (Devlin et al., arXiv 1810.04805) with mean pooling and unit length (Reimers and
Gurevych, arXiv 1908.10084), as the package's config.json says.
"""

from __future__ import annotations

import json
import math
import re
import sysconfig
import zipfile
from pathlib import Path

import numpy as np

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,.;:()'\"/-]{40,700}[.!?]")


def export(archive: Path, out: Path) -> None:
    """Write the model of a package's `model.zip`, which makes an embedding of token numbers."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    with zipfile.ZipFile(archive) as contents:
        config = json.loads(contents.read("config.json"))
        weights = _tensors(contents.read("model.safetensors"))
    width, heads = config["hidden_size"], config["num_attention_heads"]
    norm_step = config["layer_norm_eps"]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = ("query", "key", "value")
            self.add_module("self", nn.ModuleDict({n: nn.Linear(width, width) for n in names}))
            self.output = Residual(width)

        def forward(self, values: Tensor, mask: Tensor) -> Tensor:
            def split(name: str) -> Tensor:
                projected = self.get_submodule(f"self.{name}")(values)
                shape = (values.size(0), values.size(1), heads, width // heads)
                return projected.view(shape).permute(0, 2, 1, 3)

            scores = split("query") @ split("key").transpose(-1, -2) / math.sqrt(width // heads)
            mixed = torch.softmax(scores + mask, -1) @ split("value")
            joined = mixed.permute(0, 2, 1, 3).contiguous()
            return self.output(joined.view(values.size(0), values.size(1), width), values)

    class Residual(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.dense = nn.Linear(inputs, width)
            self.LayerNorm = nn.LayerNorm(width, eps=norm_step)

        def forward(self, values: Tensor, residual: Tensor) -> Tensor:
            return self.LayerNorm(self.dense(values) + residual)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = config["intermediate_size"]
            self.attention = Attention()
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
            self.output = Residual(inner)

        def forward(self, values: Tensor, mask: Tensor) -> Tensor:
            values = self.attention(values, mask)
            return self.output(functional.gelu(self.intermediate["dense"](values)), values)

    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word_embeddings = nn.Embedding(config["vocab_size"], width)
            self.position_embeddings = nn.Embedding(config["max_position_embeddings"], width)
            self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], width)
            self.LayerNorm = nn.LayerNorm(width, eps=norm_step)

        def forward(self, tokens: Tensor) -> Tensor:
            places = torch.arange(tokens.size(1)).unsqueeze(0)
            kinds = self.token_type_embeddings(torch.zeros_like(tokens))
            total = self.word_embeddings(tokens) + kinds + self.position_embeddings(places)
            return self.LayerNorm(total)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = nn.ModuleList([Layer() for _ in range(config["num_hidden_layers"])])
            self.embeddings = Embeddings()
            self.encoder = nn.ModuleDict({"layer": layers})

        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            values = self.embeddings(tokens)
            present = mask.to(values.dtype)
            for layer in self.encoder["layer"]:
                values = layer(values, (1 - present[:, None, None, :]) * -10000.0)
            pooled = (values * present[..., None]).sum(1) / present.sum(1, keepdim=True)
            return functional.normalize(pooled, p=2.0, dim=1)

    model = Encoder().eval()
    wanted = model.state_dict()
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in wanted})
    tokens = torch.arange(1000, 1016).unsqueeze(0)
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        model,
        (tokens, torch.ones_like(tokens)),
        str(out),
        input_names=["input_ids", "attention_mask"],
        output_names=["embedding"],
        opset_version=17,
        dynamo=False,
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "embedding": {0: "batch"}},
    )


def _tensors(raw: bytes) -> dict[str, np.ndarray]:
    """A safetensors file (its README, "Format"): length of a JSON header, header, data."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            values = np.frombuffer(raw, "<f4", (last - first) // 4, start + first)
            found[name] = values.reshape(entry["shape"]).copy()
    return found


def token_rows(archive: Path, count: int, *, longest: int = 128) -> list[np.ndarray]:
    """Token numbers of so many English sentences and paragraphs, each int64 [1, length].

    They are from the documentation in Python's standard library, of many lengths, no two the same.
    """
    from tokenizers import Tokenizer

    with zipfile.ZipFile(archive) as contents:
        tokenizer = Tokenizer.from_str(contents.read("tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    texts = sentences(count)
    return [np.array([tokenizer.encode(text).ids], np.int64) for text in texts]


def sentences(count: int) -> list[str]:
    """So many different English sentences and paragraphs, in an order of chance."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        if "site-packages" in file.parts or "test" in file.parts:
            continue
        for text in re.findall(r'"""(.*?)"""', file.read_text(errors="ignore"), re.DOTALL):
            for index, paragraph in enumerate(re.split(r"\n\s*\n", text)):
                prose = " ".join(paragraph.split())
                # two of three paragraphs are kept whole
                parts = _SENTENCE.split(prose)[:2] if index % 3 == 0 else [prose]
                found.update((part, None) for part in parts if _PROSE.fullmatch(part))
    if len(found) < count:
        raise FileNotFoundError(f"only {len(found)} sentences in Python's library")
    order = np.random.default_rng(0).permutation(len(found))[:count]
    every = list(found)
    return [every[index] for index in order]
