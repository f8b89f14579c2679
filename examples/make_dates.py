"""Dates as people write them: ``make_dates.py FOLDER`` → FOLDER/dates.jsonl and FOLDER/tokenizer.

Each line is a date in one of several forms (``3rd of March 1998``), and the same as ISO 8601 has it.
"""

import json
import random
import sys
from datetime import date, timedelta
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

DATES = 2500
FIRST, DAYS = date(1990, 1, 1), 20_000
FORMS = (
    "{day}{th} of {month} {year}",
    "{month} {day}, {year}",
    "{day} {short} {year}",
    "{weekday}, {month} {day} {year}",
)
ENDS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
SPECIAL = ["<pad>", "</s>", "<unk>"]


def main(folder: Path, count: int = DATES) -> None:
    """Write ``count`` dates, and a tokenizer of their words and numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = random.Random(0)  # noqa: S311 - a date, not a secret
    days = [FIRST + timedelta(chosen.randrange(DAYS)) for _ in range(count)]
    rows = [(written(day, chosen.choice(FORMS)), day.isoformat()) for day in days]
    lines = [json.dumps({"text": text, "target": target}) for text, target in rows]
    (folder / "dates.jsonl").write_text("\n".join(lines) + "\n")
    write_tokenizer(folder / "tokenizer", [text for row in rows for text in row])
    print(f"{count:,} dates in {folder}")


def written(day: date, form: str) -> str:
    """A date in one of ``FORMS``."""
    return form.format(
        day=day.day,
        th=ENDS.get(day.day, "th"),
        month=f"{day:%B}",
        short=f"{day:%b}",
        year=day.year,
        weekday=f"{day:%A}",
    )


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A tokenizer of whole words and numbers, which ends a text as T5's does."""
    tokenizer = Tokenizer(WordLevel(unk_token=SPECIAL[2]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
