"""Back-translation (https://arxiv.org/abs/1511.06709): a text into another language and back reads differently.

Invariant: what a chunk of texts becomes is a function of the texts, the models, the temperature and the key, computed
once and kept in the cache.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from finetune_api.base import Source
from finetune_api.job import BackTranslation
from finetune_trainer.context import Context
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import NotFoundError, SpecFault

FIELD = "spec.data.augmentation.text.backTranslation"
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\s*\n\s*")
_BATCH = 32
"""Sentences translated at a time."""
_BEAMS = 4
"""When nothing is drawn."""
_HASHED = ("*.json", "*.safetensors", "*.spm", "*.model", "*.txt")
_FORMAT = 1
_FILE = "texts.json"


@dataclass(frozen=True)
class Translator:
    """One direction. The model is loaded when the first text asks for it: what is in the cache needs none."""

    folder: Path
    field: str
    """Of the spec, for messages."""
    device: torch.device
    temperature: float

    @cached_property
    def digest(self) -> str:
        """What the model is: a hash of its files."""
        found = hashlib.sha256()
        for path in sorted(path for pattern in _HASHED for path in self.folder.glob(pattern)):
            found.update(path.name.encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def check(self) -> None:
        """Raise SpecFault or NotFoundError unless this is a model that reads a text and writes one."""
        from transformers import AutoConfig

        if not (self.folder / "config.json").is_file():
            raise NotFoundError(f"{self.field}: {self.folder} has no config.json; it must be a model's folder")
        try:
            config = AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise SpecFault(f"{self.field}: {self.folder}: {str(error).strip().splitlines()[0]}") from error
        if not config.is_encoder_decoder:
            raise SpecFault(
                f"{self.field}: must be a translation model such as Marian's, got one of {config.model_type}"
            )

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            model = AutoModelForSeq2SeqLM.from_pretrained(self.folder, dtype=torch.float32, use_safetensors=True)
        except Exception as error:  # tokenizers raise whatever they stumble upon in a folder that is not whole
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise NotFoundError(f"{self.field}: {self.folder} has no usable model and tokenizer: {reason}") from error
        return tokenizer, model.to(self.device).eval()

    def translate(self, sentences: Sequence[str], beat: Beat) -> list[str]:
        """Each sentence in the other language; draws from torch's generator unless the temperature is 0."""
        order = sorted(range(len(sentences)), key=lambda index: (-len(sentences[index]), index))
        found = [""] * len(sentences)
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            for index, text in zip(indices, self._batch([sentences[index] for index in indices]), strict=True):
                found[index] = text
            beat()
        return found

    def _batch(self, sentences: list[str]) -> list[str]:
        tokenizer, model = self._loaded
        limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
        inputs = tokenizer(sentences, return_tensors="pt", padding=True, truncation=True, max_length=limit)
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "num_beams": 1}
        how = drawn if self.temperature else {"do_sample": False, "num_beams": _BEAMS}
        with torch.inference_mode():
            ids = model.generate(**inputs.to(self.device), max_length=limit, **how)
        texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


@dataclass(frozen=True)
class RoundTrip:
    """There and back."""

    forward: Translator
    backward: Translator
    cache: Path
    beat: Beat

    @property
    def identity(self) -> list[Any]:
        """What a translation depends upon beside the text and the key, as JSON."""
        return [_FORMAT, self.forward.digest, self.backward.digest, self.forward.temperature]

    def __call__(self, texts: Sequence[str], key: int) -> list[str]:
        """Each text after its way there and back; from the cache if the same was asked for before.

        Args:
            texts: The texts; a sentence is translated at a time.
            key: Seeds what is drawn: another key, another translation (at a temperature above 0).
        """
        hashed = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        return cached(
            self.cache,
            "translations",
            {"made": self.identity, "texts": hashed, "key": key if self.forward.temperature else 0},
            build=lambda folder: self._write(folder / _FILE, texts, hashed, key),
            load=lambda folder: list(json.loads((folder / _FILE).read_text())),
            beat=self.beat,
        )

    def _write(self, path: Path, texts: Sequence[str], hashed: str, key: int) -> None:
        sentences = [[each for each in _SENTENCE_END.split(text) if each.strip()] for text in texts]
        flat = [each for parts in sentences for each in parts]
        with torch.random.fork_rng():
            torch.manual_seed(int(hashlib.sha256(f"{hashed} {key}".encode()).hexdigest()[:15], 16))
            back = self.backward.translate(self.forward.translate(flat, self.beat), self.beat)
        path.write_text(json.dumps(list(_joined(texts, sentences, back))))


def find_round_trip(spec: BackTranslation, context: Context, device: torch.device, beat: Beat) -> RoundTrip:
    """Both models, checked but not loaded.

    Raises:
        NotFoundError, Denied: One is not there.
        SpecFault: One does not translate.
    """

    def find(source: Source, name: str) -> Translator:
        field = f"{FIELD}.{name}"
        folder = resolve_source(source, None, field=field, volumes=context.volumes, kind="model")
        found = Translator(folder, field, device, spec.temperature)
        found.check()
        return found

    return RoundTrip(find(spec.forward, "forward"), find(spec.backward, "backward"), context.cache, beat)


def _joined(texts: Sequence[str], sentences: Sequence[Sequence[str]], back: Sequence[str]) -> Iterator[str]:
    """The translated sentences as texts; one of which nothing came back stays as it was."""
    start = 0
    for text, parts in zip(texts, sentences, strict=True):
        joined = " ".join(back[start : start + len(parts)]).strip()
        start += len(parts)
        yield joined or text
