"""Distil the text encoder from MiniLM: the same direction of a sentence embedding, from a tenth of the weights.

The vocabulary is MiniLM's, pruned: its most frequent whole words, every letter, and every piece that names, tags and
captions of the pictures need. Word vectors start as MiniLM's in their first principal directions. The target is
MiniLM's sentence embedding in its first principal directions (not centred, so that cosines stay).
Output: ``text.pt`` and ``tokenizer.json`` in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import STYLES, caption, clean
from common import Average, Clock, Sharing, add_arguments, asked_to_stop, backward, load_pictures, rate_factor, save
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from sdkit_emoji.networks import TextEncoder

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
QUALITIES = (
    *("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden"),
    *("big", "small", "tiny", "happy", "sad", "angry", "cute", "old", "new", "hot", "cold", "wet", "round", "striped"),
    *("shiny", "sleepy", "flying", "smiling", "crying", "two", "three"),
)


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


def prune(teacher: Teacher, texts: list[str], words: int) -> tuple[Tokenizer, list[int]]:
    """The smaller tokenizer and, for each of its tokens, the row of the teacher's word vectors."""
    full: dict[str, int] = teacher.tokenizer.get_vocab()
    by_row = sorted(full, key=full.__getitem__)  # BERT's rows of whole words are in order of frequency
    keep = dict.fromkeys(MARKS)
    keep.update(dict.fromkeys(mark for mark in string.punctuation + "’“”…é" if mark in full))
    for letter in string.ascii_lowercase + string.digits:
        keep.update({letter: None, f"##{letter}": None})
    for encoding in teacher.tokenizer.encode_batch(texts):
        keep.update(dict.fromkeys(encoding.tokens))
    plain = [token for token in by_row if len(token) > 2 and token.isascii() and token.isalpha()]
    keep.update(dict.fromkeys(plain[:words]))
    pieces = [token for token in by_row if token.startswith("##") and token[2:].isascii() and token[2:].isalpha()]
    keep.update(dict.fromkeys(pieces[: words // 6]))
    tokens = [token for token in keep if token in full]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return tokenizer, [full[token] for token in tokens]


def corpus(
    captions: list[dict[str, Any]], extra: list[str], random: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Texts about the pictures (seen often) and single words (seen now and then)."""
    labels = sorted({clean(one["label"]) for one in captions})
    tags = sorted({clean(tag) for one in captions for tag in one["tags"]})
    texts = dict.fromkeys([*labels, *tags, *extra, ""])
    for one in captions:
        texts[f"{clean(one['label'])}, {one['style']} style"] = None
        for _ in range(2):
            texts[caption(one, random)] = None
    for label in labels:
        for _ in range(2):
            texts[f"a {random.choice(QUALITIES)} {label}, {random.choice(STYLES)} style"] = None
    return list(texts), [
        f"{a} {b}" for a, b in zip(random.choice(QUALITIES, 4000), random.choice(tags, 4000), strict=True)
    ]


def principal(matrix: Tensor, width: int) -> Tensor:
    """The first ``width`` right singular vectors of a matrix (rows, d), as (d, width)."""
    vectors: Tensor = torch.linalg.eigh(matrix.T @ matrix)[1]
    return vectors.flip(1)[:, :width]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=4000, batch=128, rate=1e-3)
    parser.add_argument(
        "--teacher", type=Path, required=True, help="folder with MiniLM's model.safetensors and tokenizer.json"
    )
    parser.add_argument(
        "--names", type=Path, help="emojibase data.json: names of pictures left out are learned as words"
    )
    parser.add_argument("--words", type=int, default=9000, help="most frequent whole words kept")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--length", type=int, default=24)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    random = np.random.default_rng(arguments.seed)
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)

    teacher = Teacher(arguments.teacher)
    _, captions = load_pictures(arguments.data)
    extra: list[str] = []
    if arguments.names:
        extra = sorted({clean(one["label"]) for one in json.loads(arguments.names.read_text(encoding="utf-8"))})
    often, seldom = corpus(captions, extra, random)
    tokenizer, rows = prune(teacher, often, arguments.words)
    tokenizer.enable_truncation(arguments.length)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    seldom += [token for token in tokens if token.isalpha() and len(token) > 2]
    texts = often + seldom
    share = torch.tensor([3.0] * len(often) + [1.0] * len(seldom))
    targets_at = arguments.out / "teacher.pt"
    cached: dict[str, Any] = torch.load(targets_at, weights_only=True) if targets_at.exists() else {"texts": None}
    if cached["texts"] != texts:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        vectors = torch.empty(len(texts), 384)
        for first in tqdm(range(0, len(order), 64), desc="teacher", mininterval=5):
            part = order[first : first + 64]
            vectors[part] = teacher([texts[index] for index in part])
        cached = {"texts": texts, "vectors": vectors}
        save(targets_at, cached)
    vectors = cached["vectors"]
    targets = F.normalize(vectors @ principal(vectors, arguments.width), dim=-1)
    test = torch.from_numpy(random.permutation(len(often))[:256])
    share[test] = 0
    encodings = [one.ids for one in tokenizer.encode_batch(texts)]

    config = {
        "vocabulary": len(tokens),
        "width": arguments.width,
        "layers": arguments.layers,
        "length": arguments.length,
    }
    model = TextEncoder(**config)
    with torch.no_grad():
        words = teacher.weights["embeddings.word_embeddings.weight"]
        small = words[rows] @ principal(words - words.mean(0), arguments.width)
        model.words.weight.copy_((small - small.mean(0)) / small.std() * 0.5)
        nn.init.normal_(model.places.weight, std=0.05)
    model.to(device)
    average = Average(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    clock, step, smooth = Clock(arguments.steps, arguments.minutes), 0, 0.0
    path = arguments.out / "text.pt"
    if arguments.resume:
        done = torch.load(path, weights_only=True, map_location=device)
        model.load_state_dict(done["model"])
        optimizer.load_state_dict(done["optimizer"])
        average.values = {name: done["average"][name].to(device) for name in average.values}
        step, clock.spent = done["step"], done["seconds"]
    shadow = TextEncoder(**config).to(device)

    def batch(index: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = [encodings[one] for one in index]
        length = max(map(len, chosen))
        ids = torch.zeros(len(chosen), length, dtype=torch.long)
        for row, one in enumerate(chosen):
            ids[row, : len(one)] = torch.tensor(one)
        mask = torch.arange(length) < torch.tensor([len(one) for one in chosen])[:, None]
        return ids.to(device), mask.to(device), targets[index].to(device)

    def cosine(network: nn.Module, index: list[int]) -> Tensor:
        ids, mask, target = batch(index)
        cosines: Tensor = F.cosine_similarity(network(ids, mask)[1], target, dim=-1)
        return cosines

    print(f"{len(often)} texts, {len(seldom)} words and pairs, {len(tokens)} tokens")
    bar = tqdm(total=arguments.steps, initial=step, mininterval=5)
    sharing = Sharing(torch.get_num_threads()) if arguments.share else None
    stop = asked_to_stop()
    while True:
        progress = clock.progress(step)
        finished = progress >= 1 or stop()
        if finished or (step and step % 500 == 0):
            average.write(shadow)
            with torch.no_grad():
                figure = float(cosine(shadow, test.tolist()).mean())
            bar.write(f"step {step} seconds {clock.seconds():.0f} loss {smooth:.4f} held-out cosine {figure:.4f}")
            content = {"config": config, "model": model.state_dict(), "average": shadow.state_dict(), "cosine": figure}
            save(path, {**content, "optimizer": optimizer.state_dict(), "step": step, "seconds": clock.seconds()})
        if finished:
            break
        if sharing is not None:
            sharing.update()
        factor = rate_factor(step, progress, warm_up=200, decay=0.6)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * factor
        # texts of about the same length together: less padding
        pool = torch.multinomial(share, 4 * arguments.batch, replacement=True).tolist()
        pool.sort(key=lambda one: len(encodings[one]))
        for first in range(0, len(pool), arguments.batch):
            loss = (1 - cosine(model, pool[first : first + arguments.batch])).mean()
            optimizer.zero_grad(set_to_none=True)
            backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            average.update(model, step)
            smooth = loss.item() if step == 1 else 0.99 * smooth + 0.01 * loss.item()
            bar.update()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)


if __name__ == "__main__":
    main()
