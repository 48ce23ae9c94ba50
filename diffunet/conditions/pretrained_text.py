"""Frozen text encoders of `transformers`: every caption is encoded once, its hidden states are cached on the disk."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..core.errors import UserError, printable
from ..core.progress import no_progress
from ..core.runtime import default_device
from ..core.storage import atomic_write, cache_folder, load_tensors, save_tensors, sha256_of_file
from ..data.captions import Sequences

FILES = ("config.json", "*.safetensors", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")
"""Files of an encoder and its tokenizer; never pickled weights, never code."""
BATCH = 16
"""Captions that are encoded at once, repeated where there are fewer."""


@dataclass(frozen=True)
class PretrainedText:
    """A text encoder and its tokenizer (CLIP, T5, BERT and their relatives), loaded when they are used."""

    source: str
    """A folder, or an id on the hub."""
    place: str
    """The setting that an error begins with."""

    @cached_property
    def folder(self) -> Path:
        """The folder of the files. Raise UserError if one is missing."""
        local = Path(self.source).expanduser()
        if not local.is_dir():
            if self.source.count("/") != 1 or self.source.startswith((".", "/", "~")):
                raise self._error("is no folder (and a hub id has the form owner/name)")
            from huggingface_hub import snapshot_download

            try:
                local = Path(snapshot_download(self.source, allow_patterns=list(FILES)))
            except Exception as error:
                raise self._error(f"cannot be downloaded ({type(error).__name__})") from None
        for pattern, what in (("config.json", "config.json"), ("*.safetensors", "*.safetensors weights")):
            if not any(local.glob(pattern)):
                raise self._error(f"has no {what}")
        return local

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the names and contents of the encoder's files."""
        files = sorted({file for pattern in FILES for file in self.folder.glob(pattern) if file.is_file()})
        lines = "".join(f"{sha256_of_file(file)}  {file.name}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @cached_property
    def config(self) -> Any:
        """The configuration of the encoder."""
        return self._load(self._transformers.AutoConfig)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the encoder."""
        return self._load(self._transformers.AutoTokenizer)

    @cached_property
    def limit(self) -> int:
        """The number of tokens that the encoder accepts."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)

    def tokenize(self, captions: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Return the ids of each caption with the encoder's own start and end tokens, none for an empty caption."""
        options = {} if max_length is None else {"truncation": True, "max_length": max_length}
        tokenizer = self.tokenizer
        with _quiet():
            return [tokenizer(caption, **options)["input_ids"] if caption else [] for caption in captions]

    def encode(self, captions: Sequence[str], max_length: int, progress: Callable = no_progress) -> Sequences:
        """Return the last hidden states of each caption, cut to `max_length` tokens, from the cache if they are there.

        The values are fp16, or bf16 if they exceed the range of fp16. They do not depend on the other captions.
        """
        device = default_device()
        key = [self.sha256, max_length, device.type, *captions]
        file = cache_folder("texts") / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # other processes of a launcher wait for the first
            try:
                return Sequences(**load_tensors(file))
            except (UserError, TypeError):  # missing or damaged
                encoded = self.encode_anew(captions, max_length, device, progress)
                with atomic_write(file) as partial:
                    save_tensors(partial, {"values": encoded.values, "offsets": encoded.offsets})
                return Sequences(**load_tensors(file))  # memory-mapped

    def encode_anew(
        self, captions: Sequence[str], max_length: int, device: torch.device, progress: Callable = no_progress
    ) -> Sequences:
        """Return the same without the cache. Raise UserError for hidden states that are not finite."""
        ids, model = self.tokenize(captions, max_length), self._model().to(device)
        offsets = torch.tensor([0, *map(len, ids)]).cumsum(0)
        for dtype in (torch.float16, torch.bfloat16):
            values = torch.empty(int(offsets[-1]), self.config.get_text_config().hidden_size, dtype=dtype)
            for index, hidden in progress(_hidden_states(model, ids, device)):
                values[offsets[index] : offsets[index + 1]] = hidden
            if values.isfinite().all():
                return Sequences(values, offsets)
        raise self._error("gives hidden states that are not finite")

    def _model(self) -> nn.Module:
        kind = "CLIPTextModel" if self.config.model_type == "clip" else "AutoModelForTextEncoding"
        return self._load(getattr(self._transformers, kind), use_safetensors=True).float().eval()

    @property
    def _transformers(self) -> Any:
        try:
            import transformers
        except ImportError:
            raise UserError(f'{self.place}: needs transformers; run pip install "diffunet[text]", or use own') from None
        return transformers

    def _load(self, kind: Any, **options: Any) -> Any:
        folder = self.folder
        try:
            with _quiet():
                return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:  # transformers raises what its parts raise
            reason = printable((str(error).splitlines() or [type(error).__name__])[0])
            raise self._error(f"cannot be loaded ({reason})") from None

    def _error(self, problem: str) -> UserError:
        return UserError(
            f"{self.place}: {printable(self.source)} {problem}; give a folder of a transformers text encoder with "
            "config.json, model.safetensors and tokenizer.json, or own"
        )


@torch.no_grad()
def _hidden_states(model: nn.Module, ids: list[list[int]], device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of each sequence and its last hidden states, fp32 (n, D) on the CPU, shortest first.

    Batches have one length and always the same size, since the rounding of matrix products depends on the shape.
    """
    order = sorted((index for index, row in enumerate(ids) if row), key=lambda index: len(ids[index]))
    for _, group in groupby(order, key=lambda index: len(ids[index])):
        same_length = list(group)
        for first in range(0, len(same_length), BATCH):
            chosen = same_length[first : first + BATCH]
            filled = torch.tensor([ids[chosen[row % len(chosen)]] for row in range(BATCH)], device=device)
            hidden = model(input_ids=filled, attention_mask=torch.ones_like(filled)).last_hidden_state
            yield from zip(chosen, hidden.float().cpu(), strict=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings and progress bars of `transformers`, which raises every error that it logs."""
    from logging import CRITICAL

    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
