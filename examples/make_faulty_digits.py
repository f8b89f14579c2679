"""Scikit-learn's handwritten digits with faults in them: ``make_faulty_digits.py FOLDER`` → FOLDER/<digit>/<name>.png.

One digit in ten lies in the folder of another; 30 are there twice, 30 once more in double size and compressed, and 5
files are torn. The names say it (``wrong-…``, ``zz-copy-…``, ``zz-near-…``, ``zz-torn-…``), so that what is found can
be checked; cleaning takes no hint from a name.
"""

import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Write about 1,860 images."""
    digits, chosen = load_digits(), random.Random(0)  # noqa: S311 - no secret
    count = len(digits.images)
    wrong = set(chosen.sample(range(count), count // 10))
    copied, compressed, torn = (set(chosen.sample(range(count), amount)) for amount in (30, 30, 5))
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        label = chosen.choice([other for other in range(10) if other != digit]) if number in wrong else digit
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{'wrong-' if number in wrong else ''}{number:04d}.png"
        image.save(path)
        if number in copied:
            image.save(place / f"zz-copy-{number:04d}.png")
        if number in compressed:
            image.resize((16, 16), Image.Resampling.BILINEAR).save(place / f"zz-near-{number:04d}.jpg", quality=85)
        if number in torn:
            (place / f"zz-torn-{number:04d}.png").write_bytes(path.read_bytes()[:60])
    print(f"{count:,} images in {folder}, {len(wrong)} of them mislabelled, and {len(copied | compressed)} copies")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
