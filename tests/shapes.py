"""Pictures of shapes on noise, for tasks that see: where each shape is, and what is to be seen in words."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}
KINDS = ("circle", "square")


def draw_shape(draw: ImageDraw.ImageDraw, kind: str, color: str, box: tuple[int, int, int, int]) -> None:
    """A filled shape in ``box``: left, top, right, bottom, both ends drawn."""
    getattr(draw, "ellipse" if kind == "circle" else "rectangle")(box, fill=COLORS[color])


def _start(random: np.random.Generator, length: int, side: int, *, quadrants: bool) -> int:
    if not quadrants:
        return int(random.integers(0, length - side))
    return int(random.integers(0, 2)) * (length // 2) + int(random.integers(0, length // 2 - side + 1))


def write_shapes(
    folder: Path,
    count: int,
    *,
    sizes: tuple[tuple[int, int], ...] = ((64, 64),),
    most: int = 1,
    quadrants: bool = False,
) -> Path:
    """``shapes.jsonl`` in ``folder``: image, objects (as COCO has them, by kind) and text (kind and colour).

    With ``quadrants`` a shape lies within one of the four and is nearly as large: easier to find.
    """
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        image = Image.fromarray(random.integers(0, 60, (height, width, 3), np.uint8))
        draw, objects, words = ImageDraw.Draw(image), [], []
        for _ in range(int(random.integers(1, most + 1))):
            kind, color = str(random.choice(KINDS)), str(random.choice(list(COLORS)))
            side = int(random.integers(min(width, height) // (3 if quadrants else 4), min(width, height) // 2))
            x, y = (_start(random, length, side, quadrants=quadrants) for length in (width, height))
            draw_shape(draw, kind, color, (x, y, x + side - 1, y + side - 1))
            objects.append({"bbox": [x, y, side, side], "category": kind})
            words.append(f"a {color} {kind}")
        image.save(folder / f"{index:04d}.png")
        line: dict[str, Any] = {"image": f"{index:04d}.png", "objects": objects, "text": " and ".join(words)}
        lines.append(json.dumps(line))
    path = folder / "shapes.jsonl"
    path.write_text("\n".join(lines))
    return path


def precision_of_rank(rank: int, _world_size: int, *shares: tuple[int, ...]) -> list[float]:
    """Average precision of the same guesses at five images, however many of them are this rank's: one a sharing."""
    from finetune_trainer.box_metrics import BoxPrecision

    random = torch.Generator().manual_seed(0)
    corners = torch.rand(5, 3, 2, generator=random) * 20
    wanted = torch.cat([corners, corners + 10], dim=2)
    found = wanted + torch.randn(wanted.shape, generator=random)
    labels, scores = torch.tensor([0, 1, 0]), torch.rand(5, 3, generator=random)
    values = []
    for share in shares:
        metric, start = BoxPrecision([0.5, 0.75]), sum(share[:rank])
        for index in range(start, start + share[rank]):
            guess = {"boxes": found[index], "scores": scores[index], "labels": labels}
            metric.update([guess], [{"boxes": wanted[index], "labels": labels}])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a rank without images
            values.append(float(metric.compute()))
    return values
