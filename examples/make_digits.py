"""Scikit-learn's handwritten digits as a folder of images: ``make_digits.py FOLDER`` → FOLDER/<digit>/<n>.png."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Write 1,797 images of 8×8 pixels, one folder a digit."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(path)
    print(f"{len(digits.images):,} images in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
