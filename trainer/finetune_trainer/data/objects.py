"""Objects in images, from the JSON that a column holds to boxes and ids of classes.

Invariant: a box lies in its image and has an area; every message about one begins with file and line, then names the
object by its number from 0.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune_trainer.data.columns import FIELDS, listing, nearest, show
from finetune_trainer.data.label_values import label_text
from finetune_trainer.data.labels import IdLists
from finetune_trainer.errors import DataError

Origin = Callable[[int], str]
_FIELD = FIELDS["objects"]
_OUTSIDE_PIXELS = 1.0
"""How far a box may reach out of its image, by rounding; it is cut there."""
_NUMBERS = 4


@dataclass(frozen=True)
class Objects(IdLists):
    """The objects of all images of a source."""

    boxes: NDArray[np.float64]
    """(M, 4): left, top, right, bottom in pixels."""

    def of(self, row: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes (m, 4) and classes (m,) of one image."""
        return self.boxes[int(self.offsets[row]) : int(self.offsets[row + 1])], self.ids_of(row)


def find_objects(
    column: pa.ChunkedArray, train: NDArray[np.int64] | None, given: tuple[str, ...] | None, origin: Origin
) -> tuple[tuple[str, ...], Objects]:
    """The classes in the order of their ids, and every image's objects. An image may have none.

    Classes are those ``given``, else all that the column has, sorted. ``train`` holds the indices of the training
    images; None checks no training set.

    Raises:
        DataError: An object is not as it must be; a class is not in the list; no training image has an object, or (if
            no classes are given) one of a class that others have.
    """
    boxes: list[list[float]] = []
    names: list[str] = []
    counts: list[int] = []
    for index, text in enumerate(column.to_pylist()):
        found = _objects(text, lambda index=index: f"{origin(index)}: {_FIELD}")  # type: ignore[misc]
        boxes += [box for box, _ in found]
        names += [name for _, name in found]
        counts.append(len(found))
    offsets = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
    labels = given or tuple(sorted(set(names)))
    ids = _ids(names, labels, lambda number: origin(int(np.searchsorted(offsets, number, side="right")) - 1))
    objects = Objects(offsets, ids, np.array(boxes, np.float64).reshape(-1, 4))
    if train is not None:
        _check_training(labels, objects.counts(train, len(labels)), given=given is not None)
    return labels, objects


def _objects(text: str | None, place: Callable[[], str]) -> list[tuple[list[float], str]]:
    """Box (left, top, right, bottom) and class of each object."""
    try:
        value = json.loads(text) if text else []
    except ValueError as error:
        raise DataError(f"{place()}: is not JSON: {error}") from error
    if isinstance(value, dict):
        value = _rows(value, place)
    if not isinstance(value, list):
        raise DataError(f"{place()}: is {show(value)}, must be a list of objects")
    return [_object(each, lambda number=number: f"{place()}[{number}]") for number, each in enumerate(value)]  # type: ignore[misc]


def _rows(value: Mapping[str, Any], place: Callable[[], str]) -> list[Any]:
    """``{"bbox": […], "category": […]}`` as a list of objects."""
    boxes, names = value.get("bbox"), value.get("category")
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        raise DataError(f"{place()}: must have the lists bbox and category, equally long")
    return [{"bbox": box, "category": name} for box, name in zip(boxes, names, strict=True)]


def _object(value: Any, place: Callable[[], str]) -> tuple[list[float], str]:
    if not isinstance(value, dict):
        raise DataError(f"{place()}: is {show(value)}, must be an object with bbox and category")
    try:
        name = (label_text(value.get("category")) or "").strip()
    except TypeError as error:
        raise DataError(f"{place()}.category: {error}") from error
    if not name:
        raise DataError(f"{place()}.category: is missing; name the class of the object")
    return _box(value.get("bbox"), place), name


def _box(value: Any, place: Callable[[], str]) -> list[float]:
    numbers = [each for each in value if _is_number(each)] if isinstance(value, list) else []
    if len(numbers) != _NUMBERS or len(value) != _NUMBERS:
        found = json.dumps(value)[:60]
        raise DataError(f"{place()}.bbox: must be four numbers, x, y, width and height in pixels; got {found}")
    x, y, width, height = map(float, numbers)
    if width <= 0 or height <= 0:
        raise DataError(f"{place()}.bbox: has no area: width {width:g}, height {height:g}")
    if min(x, y) < -_OUTSIDE_PIXELS:
        raise DataError(f"{place()}.bbox: begins outside the image, at {x:g}, {y:g}")
    return [max(0.0, x), max(0.0, y), x + width, y + height]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ids(names: list[str], labels: tuple[str, ...], origin: Origin) -> NDArray[np.int64]:
    known = {label: index for index, label in enumerate(labels)}
    for number, name in enumerate(names):
        if name not in known:
            hint = f"({listing(labels)}){nearest(name, labels)}"
            raise DataError(f'{origin(number)}: {_FIELD}: "{name}" is not in spec.data.labels {hint}')
    return np.array([known[name] for name in names], np.int64)


def _check_training(labels: tuple[str, ...], counts: NDArray[np.int64], *, given: bool) -> None:
    absent = [label for label, count in zip(labels, counts, strict=True) if not count]
    if not counts.sum():
        raise DataError(f"{_FIELD}: no training image has an object; is it the right column?")
    if absent and not given:
        raise DataError(
            f"{_FIELD}: no training image has {listing(absent)}, yet others have; add training images of it, or list"
            " the class in spec.data.labels"
        )


def fit(objects: Objects, sizes: NDArray[np.int64], origin: Origin) -> Objects:
    """The objects, each box cut at the edge of its image. ``sizes``: (N, 2) width and height of every image.

    Raises:
        DataError: A box reaches out of its image by more than a pixel.
    """
    limits = np.repeat(sizes, np.diff(objects.offsets), axis=0).astype(np.float64)
    outside = (objects.boxes[:, 2:] > limits + _OUTSIDE_PIXELS).any(axis=1) | (objects.boxes[:, :2] >= limits).any(
        axis=1
    )
    if outside.any():
        number = int(np.argmax(outside))
        row = int(np.searchsorted(objects.offsets, number, side="right")) - 1
        left, top, right, bottom = objects.boxes[number].tolist()
        width, height = sizes[row].tolist()
        raise DataError(
            f"{origin(row)}: {_FIELD}[{number - int(objects.offsets[row])}].bbox: reaches to {right:g}, {bottom:g},"
            f" outside the image of {width} x {height} pixels; it must be x, y, width and height, got"
            f" x {left:g}, y {top:g}, width {right - left:g}, height {bottom - top:g}"
        )
    inside = np.concatenate([objects.boxes[:, :2], np.minimum(objects.boxes[:, 2:], limits)], axis=1)
    return Objects(objects.offsets, objects.ids, inside)
