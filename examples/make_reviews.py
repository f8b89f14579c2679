"""Short reviews whose test set praises and blames in other words than the training set: ``make_reviews.py FOLDER``.

Writes train.csv, test.csv (text, label), synonyms.tsv, which knows those words, and tokenizer/.
"""

import csv
import sys
from itertools import product
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SYNONYMS = {
    "good": ("fine", "splendid"),
    "great": ("superb", "excellent"),
    "lovely": ("charming", "delightful"),
    "bad": ("poor", "lousy"),
    "boring": ("dull", "tedious"),
    "awful": ("dreadful", "terrible"),
}
PRAISE, BLAME = tuple(SYNONYMS)[:3], tuple(SYNONYMS)[3:]
THINGS = ("film", "book", "meal", "hotel", "song", "play", "game", "walk")
FORMS = (
    "The {thing} was {word}.",
    "What a {word} {thing} it was!",
    "We thought the {thing} {word} from beginning to end.",
    "My friends called this {thing} {word}, and so do I.",
    "A {word} {thing}; we talked about it all evening.",
)


def reviews(praise: tuple[str, ...], blame: tuple[str, ...]) -> list[tuple[str, str]]:
    """(text, label) of every form with every thing and word."""
    return [
        (form.format(thing=thing, word=word), label)
        for label, words in (("praise", praise), ("blame", blame))
        for form, thing, word in product(FORMS, THINGS, words)
    ]


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A tokenizer of the words of these texts."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = {word for text in texts for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(words)]
    tokenizer.model = WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]")  # noqa: S106
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def main(folder: Path) -> None:
    """Write all files."""
    folder.mkdir(parents=True, exist_ok=True)
    others = [tuple(other for word in words for other in SYNONYMS[word]) for words in (PRAISE, BLAME)]
    parts = {"train": reviews(PRAISE, BLAME), "test": reviews(*others)}
    for name, rows in parts.items():
        Random(0).shuffle(rows)  # noqa: S311 - an order, no secret
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    lines = ("\t".join((word, *others)) + "\n" for word, others in SYNONYMS.items())
    (folder / "synonyms.tsv").write_text("".join(lines))
    write_tokenizer(folder / "tokenizer", [text for rows in parts.values() for text, _ in rows])
    print(f"{', '.join(f'{len(rows)} reviews to {name}' for name, rows in parts.items())} in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
