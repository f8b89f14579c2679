"""Questions about Python's own library: ``make_questions.py FOLDER`` → FOLDER/questions.jsonl and FOLDER/tokenizer.

Each line is a conversation: what a module, or something in it, is for, and the first line of its own documentation.
"""

import contextlib
import importlib
import inspect
import io
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MODULES = """
argparse ast bisect calendar collections contextlib copy csv datetime decimal difflib email enum fractions functools
glob gzip hashlib heapq html inspect io itertools json logging math operator os pathlib pickle queue random re shutil
socket sqlite3 statistics string struct subprocess tarfile tempfile textwrap threading time types typing unittest
urllib.parse uuid weakref xml.etree.ElementTree zipfile zlib
"""
TEMPLATE = (
    "{% for one in messages %}<|{{ one.role }}|>{{ one.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def main(folder: Path) -> None:
    """Write the conversations, and a tokenizer of 2,000 pieces that was trained on them."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = sorted(set(questions()))
    lines = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in pairs
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    write_tokenizer(folder / "tokenizer", [text for pair in pairs for text in pair])
    print(f"{len(lines):,} conversations in {folder}")


def questions() -> Iterator[tuple[str, str]]:
    """A question and its answer."""
    for name in MODULES.split():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
        for member, value in inspect.getmembers(module):
            line = (inspect.getdoc(value) or "").partition("\n")[0].strip()
            if not member.startswith("_") and callable(value) and line:
                yield f"What does {member} of Python's module {name} do?", line


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A byte-level tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
