"""Folders of images, ``class/image.png``, to record batches.

Invariant: the label of an image is the name of the folder that it lies in; the images themselves are not opened here.
"""

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from finetune_trainer.data.columns import Roles
from finetune_trainer.data.files import Source
from finetune_trainer.errors import DataError

_BATCH_ROWS = 16_384


def read_image_folder(source: Source, roles: Roles, field: str) -> Iterator[pa.RecordBatch]:
    """Batches with ``image`` (absolute path), ``label`` if it is a role, and ``row``: 0, for a file is one sample."""
    names = iter(source.names)
    while chunk := list(islice(names, _BATCH_ROWS)):
        columns = {"image": pa.array([str(source.root / name) for name in chunk], pa.string())}
        if "label" in roles:
            columns["label"] = pa.array([_class(name, source, field) for name in chunk], pa.string())
        if other := set(roles) - set(columns):
            raise DataError(
                f"{field}: {source.root} is a folder of images, which has no {' or '.join(sorted(other))};"
                " bring a CSV, JSON Lines or Parquet file that names the images"
            )
        yield pa.record_batch({**columns, "row": pa.array([0] * len(chunk), pa.int64())})


def _class(name: str, source: Source, field: str) -> str:
    folders = name.split("/")[:-1]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise DataError(
            f"{field}: {source.root}/{name} lies in no class's folder; an imagefolder holds class/image.png"
        )
    inner = source.root / folders[0]
    raise DataError(
        f"{field}: {source.root}/{name} lies {len(folders)} folders deep; an imagefolder holds class/image.png:"
        f" is {inner} the source?"
    )
