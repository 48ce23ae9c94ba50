"""Text as a condition: captions of the images, and prompts."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from ..core.errors import UserError, printable
from ..core.progress import print_once, shared_bar
from ..core.storage import sha256_of_file
from ..data.captions import (
    Sequences,
    TextColumn,
    distinct_captions,
    length_of,
    load_tokenizer,
    read_captions,
    train_tokenizer,
)
from ..data.columns import Column
from ..data.sources import Table
from ..models.conditioning import TextEmbedding
from ..models.config import UNetConfig
from ..models.text_encoder import PaddedTokens, TextTransformer
from .base import ABSENT, NONE, ConditionConfig, Value
from .pretrained_text import PretrainedText

OWN = "own"
FEW_CAPTIONS = 5000
"""Number of distinct captions below which words are dropped by default."""
MAX_PROMPTS_FILE = 100 * 2**20
"""Maximum size of a file of prompts, in bytes."""


class TextConfig(ConditionConfig):
    """Text as a condition: captions in training, prompts in sampling."""

    type: Literal["text"] = "text"
    column: str | None = None
    """Column of the captions, strings or lists of strings; null: the condition's own name."""
    encoder: str = OWN
    """own: a small transformer, trained jointly on the run's captions; or a folder or hub id of a text encoder of
    transformers, which stays frozen."""
    width: int = Field(default=128, ge=1, le=65_536)
    """Width of the encoder; of a frozen one filled in."""
    layers: int = Field(default=2, ge=0, le=100)
    """Layers of the own encoder."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Attention heads of the own encoder."""
    vocab_size: int = Field(default=4096, ge=257, le=1_000_000)
    """Maximum size of the own vocabulary; the actual one is filled in."""
    max_length: int | None = Field(default=None, ge=1, le=4096)
    """Number of tokens at which captions are cut; null: enough for 99.5 % of them, at most 128."""
    word_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability of dropping each token in training, only with the own encoder; null: 0.1 below 5,000 distinct
    captions, else 0."""
    sha256: str | None = None
    """SHA-256 of the tokenizer, or of the files of the frozen encoder; filled in."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.is_own and self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width {self.width}")
        if not self.is_own and self.word_dropout:
            raise ValueError(f"word_dropout: {self.word_dropout:g} needs encoder own; leave it out")
        return self

    @property
    def is_own(self) -> bool:
        """Whether the encoder is trained jointly."""
        return self.encoder == OWN

    @property
    def has_tokens(self) -> bool:
        return True

    @property
    def missing(self) -> float:
        return 0 if self.is_own else float("nan")

    @property
    def is_complete(self) -> bool:
        return self.sha256 is not None and self.max_length is not None

    @property
    def summary(self) -> str:
        encoder = f"own encoder, {self.vocab_size} tokens" if self.is_own else f"encoder {self.encoder}"
        return f"text of up to {self.max_length} tokens ({encoder})"

    @property
    def help(self) -> str:
        return "a prompt, or FILE.txt with a prompt on each line; none: unconditional"

    def read(self, name: str, table: Table, folder: Path | None) -> tuple[Self, Column] | None:
        """Return the config with vocabulary and length, and the captions of all images.

        The tokenizer is read from `folder` if it is there, and otherwise trained.
        """
        column = self.column_in(name, table)
        if column is None:
            return None
        place = f"conditions.{name}.column: column {column} of {table.path}"
        captions = read_captions(table.values(column), place)
        distinct = distinct_captions(captions)
        read = self._read_own if self.is_own else self._read_frozen
        config, tokens, counts, files = read(name, captions, distinct, folder)
        length = config.max_length or 0
        cut = frozenset(index for index, count in enumerate(counts, start=1) if count > length)
        if cut:
            print_once(f"conditions.{name}: {len(cut)} of {len(counts):,} captions are cut to {length} tokens")
        dropout = config.word_dropout or 0.0
        return config, TextColumn.of(captions, distinct, tokens, length, word_dropout=dropout, cut=cut, texts=files)

    def _read_own(
        self, name: str, captions: list[list[str]], distinct: list[str], folder: Path | None
    ) -> tuple[Self, Sequences, list[int], dict[str, str]]:
        text = self._tokenizer_in(name, folder) if self.sha256 and folder else None
        if text is None:
            tokenizer = train_tokenizer((word for words in captions for word in words), self.vocab_size)
            text = tokenizer.to_str(pretty=True)
        tokenizer, sha256 = load_tokenizer(text), hashlib.sha256(text.encode()).hexdigest()
        if folder and self.sha256 not in (None, sha256):
            raise UserError(f"{folder / _file(name)}: missing, and these captions give another one; restore the file")
        ids = [tokenizer.encode(caption).ids for caption in distinct]
        counts = [len(row) for row in ids[1:]]
        length = self.max_length or length_of(counts)
        default = 0.1 if len(counts) < FEW_CAPTIONS else 0.0
        update = {
            "vocab_size": tokenizer.get_vocab_size(),
            "max_length": length,
            "word_dropout": default if self.word_dropout is None else self.word_dropout,
            "sha256": sha256,
        }
        return self.model_copy(update=update), Sequences.of([row[:length] for row in ids]), counts, {_file(name): text}

    def _read_frozen(
        self, name: str, captions: list[list[str]], distinct: list[str], folder: Path | None
    ) -> tuple[Self, Sequences, list[int], dict[str, str]]:
        encoder = self._pretrained(name, verify=folder is not None)
        counts = [len(row) for row in encoder.tokenize(distinct[1:])]
        length = min(self.max_length or length_of(counts), encoder.limit)
        tokens = encoder.encode(distinct, length, shared_bar("encoding captions", "caption", len(counts)))
        update = {"width": tokens.values.shape[1], "max_length": length, "sha256": encoder.sha256}
        return self.model_copy(update=update), tokens, counts, {}

    def build_embedding(self, name: str, unet: UNetConfig) -> TextEmbedding:
        if self.sha256 is None or self.max_length is None:
            raise ValueError(f"conditions.{name}.max_length: not set; complete the config from data, by `read`")
        if not unet.token_dim:
            raise ValueError("unet.token_dim: 0, so text has no input; set it")
        encoder = (
            TextTransformer(self.vocab_size, self.max_length, self.width, self.layers, self.heads)
            if self.is_own
            else PaddedTokens(self.width)
        )
        return TextEmbedding(encoder, self.width, unet.token_dim, unet.vector_dim)

    def parse(self, name: str, words: Any, folder: Path, size: tuple[int, int]) -> list[Value]:
        """Return the tokens of a prompt, of each line of a .txt file, or of a list of prompts.

        Raise UserError for a prompt with more tokens than the longest in training.
        """
        prompts = [_prompt(name, word) for word in (words if isinstance(words, list) else _lines(name, words))]
        given = list(dict.fromkeys(filter(None, prompts)))
        tokens = self._tokens(name, given, folder) if given else Sequences.of([])
        values = {
            prompt: Value(tokens.padded(torch.tensor([index]), self.max_length or 0, self.missing)[0], prompt)
            for index, prompt in enumerate(given)
        }
        return [values[prompt] if prompt else ABSENT for prompt in prompts]

    def is_file(self, word: str) -> bool:
        return word.endswith(".txt")

    def _tokens(self, name: str, prompts: Sequence[str], folder: Path) -> Sequences:
        if self.is_own:
            text = self._tokenizer_in(name, folder)
            if text is None:
                raise UserError(f"{folder / _file(name)}: missing; restore it, or train again")
            tokenizer = load_tokenizer(text)
            ids = [tokenizer.encode(prompt).ids for prompt in prompts]
        else:
            encoder = self._pretrained(name, verify=True)
            ids = encoder.tokenize(prompts)
        for row in ids:
            if len(row) > (self.max_length or 0):
                found = f"the prompt has {len(row)} tokens, the run was trained on at most {self.max_length}"
                raise UserError(f"{name}: {found}; shorten it")
        return Sequences.of(ids) if self.is_own else encoder.encode(prompts, self.max_length or 0)

    def _tokenizer_in(self, name: str, folder: Path) -> str | None:
        """Return the tokenizer.json of a run, None if it is missing. Raise UserError if it is not the run's."""
        file = folder / _file(name)
        if not file.is_file():
            return None
        if sha256_of_file(file) != self.sha256:
            raise UserError(f"{file}: damaged (its SHA-256 is not the one in the run's config)")
        return file.read_text(encoding="utf-8")

    def _pretrained(self, name: str, verify: bool) -> PretrainedText:
        encoder = PretrainedText(self.encoder, f"conditions.{name}.encoder")
        if verify and self.sha256 not in (None, encoder.sha256):
            raise UserError(
                f"conditions.{name}.encoder: {self.encoder} is not the encoder that the run was trained with (its "
                "SHA-256 differs); restore its files"
            )
        return encoder


def _file(name: str) -> str:
    return f"{name}.tokenizer.json"


def _prompt(name: str, word: Any) -> str | None:
    """Return a prompt; None for an empty one, which is absent."""
    if not isinstance(word, str | int | float | None) or isinstance(word, bool):
        raise UserError(f"{name}: {printable(word, 40)} is not text; give a prompt, FILE.txt or a list of prompts")
    prompt = "" if word is None else str(word).strip()
    return None if prompt in ("", NONE) else prompt


def _lines(name: str, word: Any) -> list[Any]:
    """Return a word alone, or the lines of the .txt file of that name that are not empty."""
    if not isinstance(word, str) or not word.endswith(".txt"):
        return [word]
    file = Path(word).expanduser()
    try:
        if file.stat().st_size > MAX_PROMPTS_FILE:
            raise UserError(f"{name}: {file} is larger than 100 MiB; split it")
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = printable(getattr(error, "strerror", None) or error)
        raise UserError(f"{name}: {printable(word)} cannot be read ({reason}); give a prompt or FILE.txt") from None
    if not lines:
        raise UserError(f"{name}: {file} has no prompts; write one on each line")
    return lines
