"""Scenes of scikit-learn's handwritten digits: ``make_scenes.py FOLDER`` → images, scenes.jsonl and tokenizer in it.

Each line of scenes.jsonl has an image, its objects (boxes as COCO has them) and what is to be seen, from left to right.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SCENES = 1500
SIDE = 48
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def main(folder: Path) -> None:
    """Write the scenes, of one or two digits each, and a tokenizer of the words that describe them."""
    folder.mkdir(parents=True, exist_ok=True)
    digits, random = load_digits(), np.random.default_rng(0)
    lines = []
    for number in range(SCENES):
        picture = random.integers(0, 40, (SIDE, SIDE), np.uint8)
        objects = []
        for half in range(int(random.integers(1, 3))):
            index = int(random.integers(len(digits.images)))
            pixels = (digits.images[index] * 255 / 16).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
            x, y = half * SIDE // 2 + int(random.integers(0, 9)), int(random.integers(0, SIDE - 16))
            picture[y : y + 16, x : x + 16] = np.maximum(picture[y : y + 16, x : x + 16], pixels)
            objects.append({"bbox": [x, y, 16, 16], "category": WORDS[digits.target[index]]})
        Image.fromarray(picture).convert("RGB").save(folder / f"{number:04d}.png")
        said = " and ".join(f"a {one['category']}" for one in objects)
        lines.append(json.dumps({"image": f"{number:04d}.png", "objects": objects, "text": said}))
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
    write_tokenizer(folder / "tokenizer")
    print(f"{SCENES:,} scenes in {folder}")


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words."""
    ids = {word: number for number, word in enumerate((*SPECIAL, "a", "and", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(ids, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
