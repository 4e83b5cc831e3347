"""Distil the text encoder from MiniLM and a dictionary: a sentence embedding's direction, from a tenth of the weights.

The vocabulary is MiniLM's, pruned: its most frequent whole words, every letter, every piece that names, tags and
captions of the pictures need, and the pieces that the dictionary's words need most. Word vectors start as MiniLM's in
their first principal directions, or with ``--start`` as those of an earlier encoder. The target is MiniLM's sentence
embedding in 256 directions (not centred, so that cosines stay), moved to where ``dictionary.py`` puts the word or name
in it. Beside the direction, what counts is to which names of pictures a text is near: that is learned as well, as a
distribution over names (a relation instead of a point: Park et al. 2019, https://arxiv.org/abs/1904.05068).
Output in ``--out``: ``text.safetensors`` with ``config.json``, ``tokenizer.json``, and ``checkpoint.safetensors`` to go
on from.
"""

from __future__ import annotations

import argparse
import json
import string
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from captions import COLOURS, STYLES, article, caption, clean
from common import add_arguments, load_pictures, weights, write_weights
from dictionary import Known, read
from pace import follow, paced
from teacher import Teacher
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from sdkit_emoji.networks import TextEncoder
from sdkit_training import Plan, Training

SHARPNESS = 0.05  # of the softmax over similarities to names
RELATION = 0.3  # weight of that distribution beside the direction
TOGETHER = 4  # steps whose texts are drawn together and sorted by length
TRIAL = 30  # steps made to measure the speed, with --minutes
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
QUALITIES = (
    *("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden"),
    *("big", "small", "tiny", "happy", "sad", "angry", "cute", "old", "new", "hot", "cold", "wet", "round", "striped"),
    *("shiny", "sleepy", "flying", "smiling", "crying", "two", "three"),
)


def prune(
    teacher: Teacher, texts: list[str], words: int, more: list[str], pieces: int, also: Iterable[str]
) -> tuple[Tokenizer, list[int]]:
    """The smaller tokenizer and, for each of its tokens, the row of the teacher's word vectors.

    Args:
        teacher: Has the whole vocabulary.
        texts: Every token of these is kept.
        words: How many of the most frequent whole words are kept.
        more: Of these texts only the tokens are kept that are needed most often ...
        pieces: ... so many of them.
        also: Tokens that are kept in any case.
    """
    full: dict[str, int] = teacher.tokenizer.get_vocab()
    by_row = sorted(full, key=full.__getitem__)  # BERT's rows of whole words are in order of frequency
    keep = dict.fromkeys(MARKS)
    keep.update(dict.fromkeys(mark for mark in string.punctuation + "’“”…é" if mark in full))
    keep.update(dict.fromkeys(also))
    for letter in string.ascii_lowercase + string.digits:
        keep.update({letter: None, f"##{letter}": None})
    for encoding in teacher.tokenizer.encode_batch(texts):
        keep.update(dict.fromkeys(encoding.tokens))
    plain = [token for token in by_row if len(token) > 2 and token.isascii() and token.isalpha()]
    keep.update(dict.fromkeys(plain[:words]))
    parts = [token for token in by_row if token.startswith("##") and token[2:].isascii() and token[2:].isalpha()]
    keep.update(dict.fromkeys(parts[: words // 6]))
    needed = Counter(token for encoding in teacher.tokenizer.encode_batch(more) for token in encoding.tokens)
    keep.update(dict.fromkeys([token for token, _ in needed.most_common() if token not in keep][:pieces]))
    tokens = [token for token in keep if token in full]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return tokenizer, [full[token] for token in tokens]


@frozen(eq=False)
class Corpus:
    """What the encoder is to say of what.

    Attributes:
        texts: Texts about the pictures: names, tags, captions.
        targets: The teacher's answers, (n, 384) of length one.
        words: The dictionary's words.
        word_targets: Their embeddings, (m, 384) of length one.
        frames: Forms of captions with ``{}`` for a name; the first is the name alone.
        shifts: What a form adds to the embedding of a name, (f, 384).
        names: Embeddings of the pictures' names, (k, 384) of length one.
    """

    texts: list[str]
    targets: Tensor
    words: list[str]
    word_targets: Tensor
    frames: list[str]
    shifts: Tensor
    names: Tensor


def written(captions: list[dict[str, Any]], random: np.random.Generator) -> dict[str, str]:
    """Captions of the pictures, on white and on colours, and with qualities: text -> the name in it."""
    found: dict[str, str] = {}
    for one in captions:
        name = clean(one["label"])
        found[f"{name}, {one['style']} style"] = name
        for colour in (None, None, random.choice(list(COLOURS)), random.choice(list(COLOURS))):
            found[caption(one, random, colour)] = name
    for name in sorted({clean(one["label"]) for one in captions}):
        for _ in range(2):
            found[f"a {random.choice(QUALITIES)} {name}, {random.choice(STYLES)} style"] = name
    return found


def frames(
    captions: list[dict[str, Any]], teacher: Teacher, random: np.random.Generator, count: int = 14_000
) -> tuple[list[str], Tensor]:
    """Forms of captions, and what each adds to a name's embedding: the mean over some names (f, 384)."""
    uses: dict[str, list[tuple[str, str]]] = {}
    for index in random.integers(len(captions), size=count):
        one = {**captions[index], "tags": []}
        name = clean(one["label"])
        text = caption(one, random, random.choice(list(COLOURS)) if random.random() < 0.4 else None)
        uses.setdefault(text.replace(article(name), "a {}").replace(name, "{}"), []).append((text, name))
    uses = {form: pairs for form, pairs in uses.items() if len(pairs) >= 6 and form.count("{}") == 1}
    texts = list(dict.fromkeys(text for pairs in uses.values() for pair in pairs for text in pair))
    at = {text: index for index, text in enumerate(texts)}
    vectors = teacher.embed(texts)
    shifts = [
        (vectors[[at[text] for text, _ in pairs]] - vectors[[at[name] for _, name in pairs]]).mean(0)
        for pairs in uses.values()
    ]
    return ["{}", *uses], torch.stack([torch.zeros(384), *shifts])


def corpus(
    captions: list[dict[str, Any]], extra: list[str], known: Known, teacher: Teacher, random: np.random.Generator
) -> Corpus:
    """Everything the encoder learns from, with the teacher's answers."""
    named = written(captions, random)
    tags = sorted({clean(tag) for one in captions for tag in one["tags"]})
    texts = list(dict.fromkeys(["", *known.names, *tags, *extra, *named]))
    at = {text: index for index, text in enumerate(texts)}
    vectors = teacher.embed(texts)
    meant = dict(zip(known.words, known.vectors, strict=True)) | dict(zip(known.names, known.name_vectors, strict=True))
    targets = vectors.clone()
    for text, index in at.items():
        if text in meant:
            targets[index] = meant[text]
        elif text in named:  # the name where the dictionary puts it, with what the rest of the caption adds
            targets[index] = meant[named[text]] + vectors[index] - vectors[at[named[text]]]
    forms, shifts = frames(captions, teacher, random)
    word_targets = torch.stack([meant[word] for word in known.words])
    return Corpus(texts, F.normalize(targets, dim=-1), known.words, word_targets, forms, shifts, known.name_vectors)


def principal(matrix: Tensor, width: int) -> Tensor:
    """The first ``width`` right singular vectors of a matrix (rows, d), as (d, width)."""
    vectors: Tensor = torch.linalg.eigh(matrix.T @ matrix)[1]
    return vectors.flip(1)[:, :width]


def rotation(wide: Tensor, narrow: Tensor) -> Tensor:
    """The directions (d, w), orthonormal, in which ``wide`` (n, d) is nearest to ``narrow`` (n, w).

    Schoenemann 1966, https://doi.org/10.1007/BF02289451.
    """
    left, _, right = torch.linalg.svd(wide.T @ narrow, full_matrices=False)
    directions: Tensor = left @ right
    return directions


class Started:
    """The encoder to go on from: its answers, and its word vectors by token."""

    def __init__(self, folder: Path) -> None:
        content = weights(folder, "text", torch.device("cpu"))
        self.network = TextEncoder(**content["config"])
        self.network.load_state_dict(content["average"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.length = content["config"]["length"]
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding()

    @torch.no_grad()
    def answers(self, texts: list[str]) -> Tensor:
        """Texts -> (n, width) of length one."""
        found = []
        for first in range(0, len(texts), 256):
            encodings = self.tokenizer.encode_batch(texts[first : first + 256])
            ids = torch.tensor([one.ids for one in encodings])
            mask = torch.tensor([one.attention_mask for one in encodings]).bool()
            found.append(F.normalize(self.network(ids, mask)[1], dim=-1))
        return torch.cat(found)

    def words(self, tokens: list[str], teacher: Tensor) -> Tensor:
        """Word vectors (n, width) of tokens; those of new ones as the old ones follow from the teacher's (n, d)."""
        own: dict[str, int] = self.tokenizer.get_vocab()
        shared = [index for index, token in enumerate(tokens) if token in own]
        trained = self.network.words.weight.detach()[[own[tokens[index]] for index in shared]]
        plain = torch.cat([teacher, torch.ones(len(teacher), 1)], 1)
        found: Tensor = plain @ torch.linalg.lstsq(plain[shared], trained).solution
        found[shared] = trained
        return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, steps=4000, batch=128, rate=1e-3)
    parser.add_argument(
        "--teacher", type=Path, required=True, help="folder with MiniLM's model.safetensors and tokenizer.json"
    )
    parser.add_argument("--words", type=Path, required=True, help="words.safetensors of dictionary.py")
    parser.add_argument(
        "--names", type=Path, help="emojibase data.json: names of pictures left out are learned as words"
    )
    parser.add_argument(
        "--start", type=Path, help="folder of an encoder to go on from, of this program or exported weights"
    )
    parser.add_argument("--frequent", type=int, default=9000, help="most frequent whole words kept")
    parser.add_argument("--pieces", type=int, default=3000, help="tokens kept for the dictionary's words")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--save-minutes", type=float, default=4, help="minutes between checkpoints")
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
    known = read(arguments.words)
    learned = corpus(captions, extra, known, teacher, random)
    texts, words = learned.texts, learned.words
    start = Started(arguments.start) if arguments.start else None
    before = start.tokenizer.get_vocab() if start else {}
    tokenizer, rows = prune(teacher, texts, arguments.frequent, words, arguments.pieces, before)
    tokenizer.enable_truncation(arguments.length)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    basis = rotation(learned.targets, start.answers(texts)) if start else principal(learned.targets, arguments.width)
    targets, bank = F.normalize(learned.targets @ basis, dim=-1), F.normalize(learned.names @ basis, dim=-1)
    word_targets, shifts = (learned.word_targets @ basis).to(device), (learned.shifts @ basis).to(device)
    targets, bank = targets.to(device), bank.to(device)
    # words that are near to some name are what prompts are made of
    nearest = (learned.word_targets @ learned.names.T).amax(1)
    word_share = (0.2 + (nearest - 0.4).clamp(0, 0.4) * 4).double().numpy()
    word_share /= word_share.sum()
    test = torch.from_numpy(random.permutation(len(texts))[:256])
    share = np.ones(len(texts))
    share[test] = 0
    share /= share.sum()
    encodings = [one.ids for one in tokenizer.encode_batch(texts)]

    config = {
        "vocabulary": len(tokens),
        "width": arguments.width,
        "layers": arguments.layers,
        "length": arguments.length,
    }
    model = TextEncoder(**config)
    with torch.no_grad():
        wide = teacher.weights["embeddings.word_embeddings.weight"]
        if start:
            model.load_state_dict({**start.network.state_dict(), "words.weight": start.words(tokens, wide[rows])})
        else:
            small = wide[rows] @ principal(wide - wide.mean(0), arguments.width)
            model.words.weight.copy_((small - small.mean(0)) / small.std() * 0.5)
            nn.init.normal_(model.places.weight, std=0.05)
    model.to(device)
    shadow = TextEncoder(**config).to(device)

    def answers(network: nn.Module, ids_of: list[list[int]]) -> Tensor:
        length = max(map(len, ids_of))
        ids = torch.zeros(len(ids_of), length, dtype=torch.long)
        for row, one in enumerate(ids_of):
            ids[row, : len(one)] = torch.tensor(one)
        mask = torch.arange(length) < torch.tensor([len(one) for one in ids_of])[:, None]
        return F.normalize(network(ids.to(device), mask.to(device))[1], dim=-1)

    def of_words(count: int, random: np.random.Generator) -> tuple[list[list[int]], Tensor]:
        """Words of the dictionary, alone or in a form of captions: token ids, and targets of length one."""
        chosen = torch.from_numpy(random.choice(len(words), count, p=word_share))
        form = torch.from_numpy(random.integers(1, len(learned.frames), size=count) * (random.random(count) < 0.6))
        said = [learned.frames[f].format(words[w]) for w, f in zip(chosen.tolist(), form.tolist(), strict=True)]
        return (
            [one.ids for one in tokenizer.encode_batch(said)],
            F.normalize(word_targets[chosen] + shifts[form], dim=-1),
        )

    @lru_cache(maxsize=1)
    def pool(group: int, count: int) -> tuple[list[list[int]], Tensor]:
        """Texts of a group of steps, half of them of the dictionary, the short ones first."""
        random = np.random.default_rng([arguments.seed, group])
        chosen = torch.from_numpy(random.choice(len(texts), count // 2, p=share))
        said, aims = of_words(count - count // 2, random)
        ids_of = [encodings[index] for index in chosen.tolist()] + said
        order = sorted(range(len(ids_of)), key=lambda index: len(ids_of[index]))
        return [ids_of[index] for index in order], torch.cat([targets[chosen], aims])[order]

    def loss_of(network: nn.Module, ids_of: list[list[int]], target: Tensor) -> Tensor:
        answer = answers(network, ids_of)
        near, meant = answer @ bank.T / SHARPNESS, target @ bank.T / SHARPNESS
        apart = F.kl_div(near.log_softmax(-1), meant.log_softmax(-1), reduction="batchmean", log_target=True)
        return (1 - (answer * target).sum(-1)).mean() + RELATION * apart

    def objective(step: int, rows: range) -> Tensor:
        # texts of about the same length together: less padding
        ids_of, aims = pool(step // TOGETHER, TOGETHER * len(rows))
        part = slice(step % TOGETHER * len(rows), (step % TOGETHER + 1) * len(rows))
        return loss_of(model, ids_of[part], aims[part])

    plan = Plan(
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.rate,
        warm_up=200,
        decay=0.6,
        weight_decay=1e-3,
        average=0.999,
    )
    parameters = dict(model.named_parameters())
    plan = paced(objective, parameters, plan, arguments, trial=TRIAL)
    training = Training(parameters, objective, plan, {"config": config, "seed": arguments.seed})
    path = arguments.out / "checkpoint.safetensors"
    if arguments.resume:
        training.restore(path)
    print(f"{len(texts)} texts, {len(words)} words in {len(learned.frames)} forms, {len(tokens)} tokens, {plan}")

    @torch.no_grad()
    def keep(loss: float) -> str:
        training.save(path)
        shadow.load_state_dict(training.weights)
        near = answers(shadow, [encodings[index] for index in test.tolist()])
        figure = float((near * targets[test]).sum(-1).mean())
        alone = answers(shadow, [one.ids for one in tokenizer.encode_batch(words[::16])])
        same = (alone @ bank.T).argmax(1) == (word_targets[::16] @ bank.T).argmax(1)
        about = {"cosine": figure, "loss": loss, "step": training.step}
        write_weights(arguments.out, "text", config, training.weights, about)
        return f"held-out cosine {figure:.4f} words nearest to the teacher's name {float(same.float().mean()):.4f}"

    follow(training, keep, minutes=arguments.save_minutes, share=arguments.share)


if __name__ == "__main__":
    main()
