"""Made-up chest images with reports: ``make_reports.py FOLDER`` → FOLDER/reports.csv, FOLDER/images, FOLDER/tokenizer.

Drawn, not taken from anyone: two lungs, a heart and what may be found in them, each image with a report in two or three
sentences and its main finding. For trying out how images and reports are matched; no one's health follows from them.
"""

import csv
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerFast

IMAGES = 1200
SIZE = 64
"""Side in pixels."""
ZONES = {"upper": 20, "middle": 32, "lower": 44}
"""Where in a lung, and its height in the image."""
LUNGS = {"right": 20, "left": 44}
"""Side of the patient, and its place in the image: mirrored, as one faces them."""
SEVERITY = ("effusion", "pneumothorax", "opacity", "nodule", "cardiomegaly", "normal")
"""The first of an image's findings in this order is its main one."""
HEARTS = {"normal": 6, "mildly enlarged": 9, "markedly enlarged": 13}
"""How wide the heart is, in pixels to the left."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def main(folder: Path, count: int = IMAGES) -> None:
    """Write ``count`` images, their reports and a tokenizer of the reports' words."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chosen = random.Random(0)  # noqa: S311 - a picture, not a secret
    rows = [write_one(folder, number, chosen) for number in range(count)]
    with (folder / "reports.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "report", "finding"])
        writer.writeheader()
        writer.writerows(rows)
    write_tokenizer(folder / "tokenizer", [row["report"] for row in rows])
    print(f"{count:,} images with reports in {folder}")


def write_one(folder: Path, number: int, chosen: random.Random) -> dict[str, str]:
    """One image, and its row of the table."""
    heart = chosen.choices(list(HEARTS), (6, 2, 2))[0]
    findings = {side: find(chosen) for side in LUNGS}
    name = f"images/{number:04d}.png"
    draw(findings, HEARTS[heart], chosen).save(folder / name)
    found = {finding for finding, _ in findings.values()} | {"normal" if heart == "normal" else "cardiomegaly"}
    main_finding = next(finding for finding in SEVERITY if finding in found)
    return {"image": name, "report": report(findings, heart, chosen), "finding": main_finding}


def find(chosen: random.Random) -> tuple[str, str]:
    """What is found in one lung, and where: ("opacity", "upper") or ("normal", "")."""
    finding = chosen.choices(("normal", "opacity", "nodule", "effusion", "pneumothorax"), (4, 3, 3, 2, 1))[0]
    return finding, chosen.choice(list(ZONES)) if finding in {"opacity", "nodule"} else ""


def draw(findings: dict[str, tuple[str, str]], heart: int, chosen: random.Random) -> Image.Image:
    """The image: what is dense is bright."""
    image = Image.new("L", (SIZE, SIZE), 20)
    pen = ImageDraw.Draw(image)
    pen.ellipse((2, 4, 62, 78), 110)
    for side, middle in LUNGS.items():
        pen.ellipse((middle - 11, 10, middle + 11, 56), 45)
        draw_finding(pen, middle, *findings[side], chosen)
    pen.rectangle((30, 6, 34, 60), 150)
    pen.ellipse((28, 34, 34 + heart, 56), 170)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), float)
    noise = np.random.default_rng(chosen.randrange(2**32)).normal(0, 6, soft.shape)
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


def draw_finding(pen: ImageDraw.ImageDraw, middle: int, finding: str, zone: str, chosen: random.Random) -> None:
    """One finding in the lung around ``middle``."""
    x, y = middle + chosen.randint(-3, 3), ZONES.get(zone, 0) + chosen.randint(-2, 2)
    if finding == "opacity":
        pen.ellipse((x - 6, y - 5, x + 6, y + 5), 125)
    elif finding == "nodule":
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), 190)
    elif finding == "effusion":
        pen.chord((middle - 11, 10, middle + 11, 56), 20 + chosen.randint(0, 8), 160 - chosen.randint(0, 8), 160)
    elif finding == "pneumothorax":
        pen.ellipse((middle - 11, 10, middle + 11, 30), 5)


def report(findings: dict[str, tuple[str, str]], heart: str, chosen: random.Random) -> str:
    """Two or three sentences, in one of several wordings."""
    sentences = [
        chosen.choice(WORDINGS[finding]).format(side=side, zone=zone)
        for side, (finding, zone) in findings.items()
        if finding != "normal"
    ]
    if len(sentences) < len(LUNGS):
        clear = [side for side, (finding, _) in findings.items() if finding == "normal"]
        sentences.append("Both lungs are clear." if len(clear) > 1 else f"The {clear[0]} lung is clear.")
    size = chosen.choice(("The heart is {heart}.", "Heart size: {heart}."))
    return " ".join([*sentences, size.format(heart="of normal size" if heart == "normal" else heart)])


WORDINGS = {
    "opacity": ("Opacity in the {side} {zone} zone.", "There is consolidation in the {zone} zone of the {side} lung."),
    "nodule": ("Nodule in the {side} {zone} zone.", "A small round nodule in the {zone} zone of the {side} lung."),
    "effusion": ("Pleural effusion on the {side}.", "Fluid at the base of the {side} lung."),
    "pneumothorax": ("Pneumothorax at the {side} apex.", "Air in the pleural space at the {side} apex."),
}


def write_tokenizer(folder: Path, reports: list[str]) -> None:
    """A tokenizer of whole words, for a model that starts from nothing."""
    tokenizer = Tokenizer(WordLevel(unk_token=SPECIAL[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(reports, WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    ends = [(token, tokenizer.token_to_id(token)) for token in SPECIAL[2:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
