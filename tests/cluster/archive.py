"""Images of a few files, made without a builder: what `docker save` writes, which containerd imports."""

import hashlib
import io
import json
import tarfile
from pathlib import Path


def write_image(path: Path, name: str, files: dict[str, Path], command: list[str]) -> None:
    """Write the image ``name`` to ``path``: one layer of ``files`` (executable, by their path in it)."""
    layer = _tar({inside: file.read_bytes() for inside, file in files.items()}, mode=0o755)
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    path.write_bytes(_tar({"layer.tar": layer, "config.json": configuration, "manifest.json": manifest}, mode=0o644))


def _tar(files: dict[str, bytes], *, mode: int) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return written.getvalue()
