"""The sentence encoder that the text encoder is distilled from: all-MiniLM-L6-v2.

Wang et al. 2020, https://arxiv.org/abs/2002.10957; Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

__all__ = ["Teacher"]


class Teacher:
    """MiniLM's forward pass (BERT, 6 layers), mean pooling and normalisation, from its safetensors file."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "model.safetensors")
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(64)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The linear layer called ``name``."""
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The layer normalisation called ``name``."""
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Texts -> (b, 384), of length one."""
        encodings = self.tokenizer.encode_batch(texts)
        length = max(len(one.ids) for one in encodings)
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        for row, one in enumerate(encodings):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            mask[row, : len(one.ids)] = True
        heads = self.config["num_attention_heads"]
        x = self.weights["embeddings.word_embeddings.weight"][ids]
        x = x + self.weights["embeddings.position_embeddings.weight"][:length]
        x = self.norm(x + self.weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        b, n, d = x.shape
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            query, key, value = (
                self.linear(x, f"{layer}.attention.self.{part}").view(b, n, heads, d // heads).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
            mixed = self.linear(mixed.transpose(1, 2).reshape(b, n, d), f"{layer}.attention.output.dense")
            x = self.norm(x + mixed, f"{layer}.attention.output.LayerNorm")
            inner = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(x + self.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        weights = mask[:, :, None].float()
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)

    def embed(self, texts: list[str], batch: int = 128) -> Tensor:
        """Texts -> (n, 384), in batches of texts of like length."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = torch.empty(len(texts), 384)
        for first in tqdm(range(0, len(order), batch), desc="teacher", mininterval=10):
            part = order[first : first + batch]
            vectors[part] = self([texts[index] for index in part])
        return vectors
