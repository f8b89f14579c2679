"""Names in Python's own code: ``make_names.py FOLDER`` → FOLDER/names.jsonl and FOLDER/tokenizer.

Each sample is a line of a module, word by word, and what its names are: one that is called (`os.path.join` is one of
five words), a parameter, an exception that is raised or caught. Python's parser says it.
"""

import ast
import importlib
import inspect
import io
import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertTokenizer

MODULES = "argparse calendar codecs fractions heapq imaplib inspect mailbox shutil smtplib statistics tarfile"
LEAST, MOST = 6, 40
"""Words of a line."""
PIECES = 1000
"""Of the tokenizer's vocabulary."""
Place = tuple[int, int]
"""Line and column."""
Line = tuple[tuple[str, ...], tuple[str, ...]]
"""Words, and the tag of each."""


def main(folder: Path) -> None:
    """Write the lines, each once, and a tokenizer that was trained on them."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {words: tags for module in MODULES.split() for words, tags in lines_of(module)}
    lines = [json.dumps({"tokens": words, "tags": tags}) for words, tags in found.items()]
    (folder / "names.jsonl").write_text("\n".join(lines) + "\n")
    write_tokenizer(folder / "tokenizer", [" ".join(words) for words in found])
    print(f"{len(lines):,} lines in {folder}")


def lines_of(module: str) -> Iterator[Line]:
    """The lines of a module's code that name something."""
    text = inspect.getsource(importlib.import_module(module))
    names, end, role = names_in(ast.parse(text)), (0, 0), ""
    words: list[str] = []
    tags: list[str] = []
    for one in tokenize.generate_tokens(io.StringIO(text).readline):
        if one.type == tokenize.NEWLINE:
            if LEAST <= len(words) <= MOST and set(tags) != {"O"}:
                yield tuple(words), tuple(tags)
            words, tags = [], []
        elif one.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
            words.append(one.string)
            is_inside = one.start < end
            end, role = names.get(one.start, (end, role))
            tags.append(f"B-{role}" if one.start in names else f"I-{role}" if is_inside else "O")


def names_in(tree: ast.Module) -> dict[Place, tuple[Place, str]]:
    """Beginning of a name → its end, and what it is."""
    found: dict[Place, tuple[Place, str]] = {}

    def add(node: ast.expr | ast.arg, role: str) -> None:
        end = (node.lineno, node.col_offset + len(node.arg)) if isinstance(node, ast.arg) else ends_at(node)
        if end is not None:
            found[node.lineno, node.col_offset] = end, role

    for node in ast.walk(tree):  # from the outside in: what is raised comes before the call that makes it
        if isinstance(node, ast.arg):
            add(node, "PARAMETER")
        elif isinstance(node, ast.Call) and (node.func.lineno, node.func.col_offset) not in found:
            add(node.func, "CALL")
        elif isinstance(node, ast.Raise) and node.exc is not None:
            add(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, "EXCEPTION")
        elif isinstance(node, ast.ExceptHandler) and node.type is not None:
            for one in node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]:
                add(one, "EXCEPTION")
    return found


def ends_at(node: ast.expr) -> Place | None:
    """Where a name with dots ends; None if it is another expression."""
    inner = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    if not isinstance(inner, ast.Name) or node.end_lineno is None or node.end_col_offset is None:
        return None
    return node.end_lineno, node.end_col_offset


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A tokenizer of BERT's kind."""
    trained = BertWordPieceTokenizer(lowercase=False)
    trained.train_from_iterator(texts, vocab_size=PIECES, show_progress=False)
    BertTokenizer(vocab=trained.get_vocab(), do_lower_case=False, model_max_length=128).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
