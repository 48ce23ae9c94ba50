"""Captions of images: their tokenizer, their tokens without padding, and the column from which one is chosen a step."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError, printable
from ..core.rng import BatchRNG
from .columns import Column

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_LENGTH = 128
"""Maximum number of tokens of a caption, unless it is configured."""
PADDING = "<pad>"
"""The token with id 0, which no text produces."""
SIDES = re.compile(r"\b((left|right)(most|wards?)?|((counter|anti)-?)?clockwise)\b", re.IGNORECASE)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Return a tokenizer of at most `vocab_size` tokens: byte-level byte-pair encoding (Radford et al. 2019).

    No word is unknown, since all 256 bytes are tokens; pairs are merged that occur at least twice. Case, runs of white
    space and Unicode's several spellings of one letter (NFC) make no difference. Equal captions give equal tokenizers.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads would warn in forked loader workers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PADDING],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return load_tokenizer(tokenizer.to_str())


def load_tokenizer(text: str) -> "Tokenizer":
    """Return the tokenizer of a tokenizer.json. Raise ValueError if it is damaged."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises Exception itself
        raise ValueError(str(error)) from None
    tokenizer.encode_special_tokens = True  # a caption "<pad>" is text
    return tokenizer


def length_of(counts: Sequence[int]) -> int:
    """Return the number of tokens that 99.5 % of the captions do not exceed, at least 1 and at most MAX_LENGTH."""
    quantile = int(np.quantile(counts, 0.995, method="inverted_cdf"))
    return min(max(quantile, 1), MAX_LENGTH)


@dataclass(frozen=True)
class Sequences:
    """Sequences of different lengths, stored one after the other without padding."""

    values: Tensor
    """(sum of the lengths, ...)"""
    offsets: Tensor
    """(N + 1,) int64: sequence i is values[offsets[i] : offsets[i + 1]]."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Self:
        """Return sequences of integers, int64."""
        lengths = torch.tensor([0, *map(len, rows)])
        return cls(torch.tensor([value for row in rows for value in row], dtype=torch.long), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def device(self) -> torch.device:
        """The device of the sequences."""
        return self.values.device

    def to(self, device: torch.device) -> "Sequences":
        """Return the sequences on a device."""
        return Sequences(self.values.to(device), self.offsets.to(device))

    def padded(self, indices: Tensor, length: int, fill: float) -> Tensor:
        """Return some sequences, (B, length, ...), cut to `length` and padded at the end with `fill`."""
        place = self.offsets[indices][:, None] + torch.arange(length, device=self.device)
        inside = place < self.offsets[indices + 1][:, None]  # (B, length)
        values = self.values[torch.where(inside, place, 0)]
        return torch.where(inside.reshape(*inside.shape, *[1] * (values.ndim - 2)), values, fill)


# ── captions ──────────────────────────────────────────────────────────────────────────────────────


def read_captions(values: Sequence[Any], place: str) -> list[list[str]]:
    """Return the captions of each image from strings, lists of strings and None; empty ones are left out.

    Raise UserError, beginning with `place`, for a value of another type, or if all captions are empty.
    """
    captions = []
    for index, value in enumerate(values):
        words = value if isinstance(value, list | tuple) else [value]
        if wrong := [word for word in words if not isinstance(word, str | None)]:
            kind = type(wrong[0]).__name__
            found = f"row {index + 1} is {printable(wrong[0], 40)} ({kind})"
            raise UserError(f"{place} contains no captions ({found}); choose a column of strings or lists of strings")
        captions.append([word.strip() for word in words if word and word.strip()])
    if not any(captions):
        raise UserError(f"{place} has only empty captions; choose another column")
    return captions


def distinct_captions(captions: Iterable[Sequence[str]]) -> list[str]:
    """Return every caption once, sorted, after the empty one."""
    return sorted({""}.union(*captions))


def mentions_sides(captions: Iterable[str]) -> bool:
    """Return whether a caption distinguishes left from right, in English, which mirrored images contradict."""
    return any(SIDES.search(caption) for caption in captions)


@dataclass(frozen=True)
class TextColumn(Column):
    """The captions of all images, of which one is chosen at each step; an image without any has no token.

    `values` are the numbers of the images, (N,) int64.
    """

    distinct: Sequence[str]
    """Every caption once, the empty one first."""
    choices: Sequences
    """The captions of each image, as indices of `distinct`; 0 alone for an image without any."""
    tokens: Sequences
    """The tokens of each distinct caption: ids, or hidden states of a frozen encoder."""
    length: int
    """Number of tokens of a batch, with padding."""
    word_dropout: float = 0.0
    """Probability of replacing an id by padding, each on its own."""
    cut: frozenset[int] = frozenset()
    """The captions with more tokens than `length`, as indices of `distinct`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """`files`."""

    @classmethod
    def of(
        cls, captions: Sequence[Sequence[str]], distinct: Sequence[str], tokens: Sequences, length: int, **options: Any
    ) -> Self:
        """Return the column of the captions of each image, with the tokens of `distinct_captions(captions)`."""
        index_of = {caption: index for index, caption in enumerate(distinct)}
        choices = Sequences.of([[index_of[word] for word in words] or [0] for words in captions])
        return cls(torch.arange(len(captions)), distinct, choices, tokens, length, **options)

    def captions(self, index: int) -> list[str]:
        """Return the captions of an image."""
        row = int(self.values[index])
        first, end = self.choices.offsets[row : row + 2].tolist()
        return [self.distinct[choice] for choice in self.choices.values[first:end].tolist() if choice]

    def choose(self, value: Tensor, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return one caption of each image, (B,) indices of `distinct`; without a draw where no image has several."""
        value = value.to(self.choices.device)
        choice = self.choices.offsets[value]
        if len(self.choices.values) > len(self.choices):
            number = self.choices.offsets[value + 1] - choice
            choice = choice + (rng.uniform_like(image).to(number.device) * number).long()
        return self.choices.values[choice]

    def prepare(self, value: Tensor, image: Tensor, rng: BatchRNG) -> Tensor:
        """Return one caption of each image: ids (B, length), 0 for padding, or hidden states (B, length, D), NaN."""
        caption = self.choose(value, image, rng).to(self.tokens.device)
        fill = math.nan if self.tokens.values.is_floating_point() else 0
        tokens = self.tokens.padded(caption, self.length, fill).to(image.device)
        if self.word_dropout:
            uniform = torch.special.ndtr(rng.normal_like(tokens.float()))
            tokens = tokens.masked_fill(uniform < self.word_dropout, 0)
        return tokens

    def words(self, value: Tensor, image: Tensor, rng: BatchRNG) -> list[str | None]:
        """Return the captions that `prepare` chooses with the same random numbers.

        None stands for an absent one, and for one that is cut: as a prompt it would be too long.
        """
        chosen = self.choose(value, image, rng).tolist()
        return [None if index in self.cut else self.distinct[index] or None for index in chosen]

    def plain(self) -> Self:
        return replace(self, word_dropout=0.0)

    def to(self, device: torch.device) -> Self:
        """Return the column on a device; tokens stay where they are if they exceed a quarter of its free memory."""
        large = device.type == "cuda" and self.tokens.values.nbytes > torch.cuda.mem_get_info(device)[0] / 4
        tokens = self.tokens if large else self.tokens.to(device)
        return replace(self, values=self.values.to(device), choices=self.choices.to(device), tokens=tokens)

    def digest(self) -> bytes:
        """Return the SHA-256 of the captions of all images."""
        return hashlib.sha256(json.dumps([self.captions(index) for index in range(len(self.values))]).encode()).digest()

    @property
    def files(self) -> Mapping[str, str]:
        return self.texts
