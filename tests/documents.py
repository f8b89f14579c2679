"""Real and realistic data without a network: Python's own documentation and code, reports of chests, digits, dates."""

import ast
import csv
import importlib.util
import json
import re
import runpy
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer

EXAMPLES = Path(__file__).parent.parent / "examples"
MODULES = ("_pydecimal", "turtle", "tkinter", "logging")
"""Four modules of the standard library with much to say, each of something else."""
ABNORMAL = re.compile("opacity|nodule|effusion|pneumothorax|enlarged", re.IGNORECASE)
LEAST_WORDS = 5


def paragraphs(module: str) -> list[str]:
    """The paragraphs of all docstrings of a module, as they are in its source: each once, prose only."""
    origin = importlib.util.find_spec(module).origin
    tree = ast.parse(Path(origin).read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    found = [" ".join(part.split()) for text in texts for part in text.split("\n\n") if ">>>" not in part]
    return list(dict.fromkeys(part for part in found if len(part.split()) >= LEAST_WORDS))


def write_documentation(path: Path, most: int = 180) -> Path:
    """JSON Lines of text and label: up to ``most`` paragraphs of each module."""
    rows = [{"text": text, "label": module} for module in MODULES for text in paragraphs(module)[:most]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_reports(folder: Path, count: int) -> Path:
    """A CSV file of reports with their main finding, and the number of findings that are not normal."""
    runpy.run_path(str(EXAMPLES / "make_reports.py"))["main"](folder, count)
    with (folder / "reports.csv").open(newline="") as file:
        rows = [row | {"abnormal": len(ABNORMAL.findall(row["report"]))} for row in csv.DictReader(file)]
    with (folder / "numbers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "numbers.csv"


def write_digits(folder: Path) -> Path:
    """Scikit-learn's handwritten digits as a folder of images."""
    runpy.run_path(str(EXAMPLES / "make_digits.py"))["main"](folder)
    return folder


def write_example(name: str, folder: Path, *arguments: int) -> Path:
    """What ``examples/make_<name>.py`` writes: its JSON Lines file, beside which its tokenizer lies."""
    runpy.run_path(str(EXAMPLES / f"make_{name}.py"))["main"](folder, *arguments)
    return folder / f"{name}.jsonl"


def texts_of(path: Path, column: str) -> list[str]:
    """A column of a JSON Lines or CSV file."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
        return [row[column] for row in rows]


def word_pieces(texts: list[str], folder: Path) -> BertTokenizer:
    """A tokenizer of BERT's kind with a vocabulary of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator(texts, vocab_size=500, show_progress=False)
    trained.save_model(str(folder))
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=False, model_max_length=64)


def byte_pairs(texts: list[str], kind: type[RobertaTokenizer | GPT2Tokenizer]) -> RobertaTokenizer | GPT2Tokenizer:
    """A byte-level tokenizer as RoBERTa and GPT-2 have it, with a vocabulary of its own."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if kind is RobertaTokenizer else ["<|endoftext|>"]
    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    trained.train_from_iterator(texts, vocab_size=800, show_progress=False, special_tokens=special)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    return kind(vocab=model["vocab"], merges=merges, model_max_length=64)
