"""Where models and data lie, and images: what is found, and what is said when it is not."""

import json
import os
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune_trainer.data.images import read_image
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import DataError, Denied, NotFoundError, PeerLostError, SpecFault


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def resolve(source: str, volumes: Path = Path("/volumes")) -> Path:
    return resolve_source(source, None, field="spec.model.source", volumes=volumes, kind="model")


def test_resolves_files_and_claims(tmp_path):
    file = write(tmp_path / "claim/my set/d.csv", "x")
    assert resolve(f"file://{tmp_path}/claim/my%20set/d.csv") == file
    assert resolve("pvc://claim/my%20set/d.csv", tmp_path) == file
    assert resolve("pvc://claim/", tmp_path) == tmp_path / "claim"


SOURCES = {
    "nearest name": (
        "file://{tmp}/claim/modell",
        NotFoundError,
        "file://{tmp}/claim/modell: {tmp}/claim/modell is not there; did you mean {tmp}/claim/model?",
    ),
    "no name is near": (
        "file://{tmp}/claim/zzz",
        NotFoundError,
        "file://{tmp}/claim/zzz: {tmp}/claim/zzz is not there; check the name in {tmp}/claim",
    ),
    "folder is missing": (
        "file://{tmp}/a/b/c",
        NotFoundError,
        "file://{tmp}/a/b/c: {tmp}/a/b/c is not there; nor is {tmp}/a/b, only {tmp} is: is the volume mounted?",
    ),
    "claim is not mounted": (
        "pvc://other/x",
        NotFoundError,
        "pvc://other/x: claim other is not mounted at {tmp}/other; does the job's namespace have it?",
    ),
    "out of the claim": (
        "pvc://claim/../x",
        SpecFault,
        "pvc://claim/../x leads out of the claim; remove the ..",
    ),
}


@pytest.mark.parametrize(("source", "kind", "message"), SOURCES.values(), ids=SOURCES)
def test_refuses_source(tmp_path, source, kind, message):
    (tmp_path / "claim/model").mkdir(parents=True)
    with pytest.raises(kind) as error:
        resolve(source.replace("{tmp}", str(tmp_path)), tmp_path)
    assert str(error.value) == f"spec.model.source: {message.replace('{tmp}', str(tmp_path))}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("mode", [0o700, 0o000], ids=oct)
def test_what_may_not_be_read_is_denied(tmp_path, mode):
    folder = tmp_path / "model"
    folder.mkdir()
    folder.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", DENIED, f"file://{folder}", f"file://{folder}/x"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == f"77 f: file://{folder}: may not look into {folder.parent}; give this user access to it"
    assert second == f"77 f: file://{folder}/x: may not look into {folder}; give this user access to it"


DENIED = """
import os, sys
from pathlib import Path
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import Denied
os.setuid(65534)
for source in sys.argv[1:]:
    try:
        resolve_source(source, None, field="f", volumes=Path("/volumes"), kind="model")
    except Denied as error:
        print(int(error.exit_code), error)
"""


# The hub: a server that answers as huggingface.co does ----------------------------------------------------------------

FILES = {
    "README.md": b"x",
    "data/train.csv": b"text,label\na,1\n",
    "data/test.csv": b"text,label\nb,1\n",
    "w.bin": b"pickle",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/none": (404, "RepoNotFound"),
    "owner/forbidden": (403, ""),
    "owner/broken": (400, ""),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        refused = next((answer for name, answer in ANSWERS.items() if name in path), None)
        if refused:
            return self.answer(refused[0], b"", **({"X-Error-Code": refused[1]} if refused[1] else {}))
        if "/no-such-revision" in path:
            return self.answer(404, b"", **{"X-Error-Code": "RevisionNotFound"})
        if "/resolve/" in path:
            content = FILES[path.partition(COMMIT + "/")[2]]
            return self.answer(200, content, ETag=f'"{hash(content)}"', **{"X-Repo-Commit": COMMIT})
        if "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(content), "oid": "0"} for name, content in FILES.items()]
            return self.answer(200, json.dumps(tree).encode())
        siblings = [{"rfilename": name} for name in FILES]
        return self.answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.mark.parametrize(
    ("source", "kind", "expected"),
    [
        ("hf://owner/name", "dataset", {"README.md", "data/train.csv", "data/test.csv", "w.bin"}),
        ("hf://owner/name", "model", {"README.md", "data/train.csv", "data/test.csv"}),
        ("hf://owner/name/data", "dataset", {"train.csv", "test.csv"}),
    ],
    ids=["dataset", "model without pickles", "folder of a dataset"],
)
def test_downloads(hub, source, kind, expected):
    path = resolve_source(source, None, field="f", volumes=Path("/volumes"), kind=kind)
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == expected


REFUSALS = {
    "owner/gated": (Denied, "its owner must grant access; ask for it on its page, and set HF_TOKEN"),
    "owner/none": (NotFoundError, "is not on the hub, or is private: check the name, or set HF_TOKEN"),
    "owner/forbidden": (Denied, "the hub refused access (HTTP 403); check HF_TOKEN"),
    "owner/name/nothing": (NotFoundError, "owner/name has no nothing"),
    "owner/a..b": (SpecFault, "owner/a..b is not the name of a repository (owner/name)"),
    "owner/broken": (
        PeerLostError,
        "the hub cannot be reached (BadRequestError); try again, or use file:// or pvc://",
    ),
}


@pytest.mark.parametrize(("name", "answer"), REFUSALS.items(), ids=REFUSALS)
def test_refusal_of_the_hub(hub, name, answer):
    kind, message = answer
    with pytest.raises(kind) as error:
        resolve(f"hf://{name}")
    assert str(error.value) == f"spec.model.source: hf://{name}: {message}"


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(NotFoundError, match=r'^f: hf://owner/name: has no revision "no-such-revision"$'):
        resolve_source("hf://owner/name", "no-such-revision", field="f", volumes=Path("/volumes"), kind="dataset")


def test_a_hub_that_cannot_be_reached_is_tried_again_later(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(PeerLostError) as error:
        resolve("hf://owner/name")
    assert error.value.exit_code == 75


# Images ---------------------------------------------------------------------------------------------------------------


def test_an_image_is_rgb_and_upright(tmp_path):
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    image.save(tmp_path / "x.jpg", exif=exif)
    found = read_image(tmp_path / "x.jpg")
    assert (found.mode, found.size) == ("RGB", (2, 4))


MODES = {"L": 200, "LA": (200, 255), "RGBA": (200, 200, 200, 0), "1": 1, "CMYK": (0, 0, 0, 0), "P": 0}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (3, 3), MODES[mode]).save(path, **({"transparency": bytes([0, 255])} if mode == "P" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 0x8000], [0xFFFF, 0x0100]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(read_image(tmp_path / "x.png"))[..., 0].tolist() == [[0, 128], [255, 1]]


def png(path: Path, size=(64, 64)) -> bytes:
    Image.effect_noise(size, 50).save(path)
    return path.read_bytes()


IMAGES = {
    "empty": (lambda content: b"", "is empty"),
    "text": (lambda content: b"hello", "is not an image of a known format (PNG, JPEG, WEBP, BMP)"),
    "truncated": (lambda content: content[: len(content) // 2], "is damaged: "),
    "garbled": (lambda content: content[:60] + b"\xff" * 200 + content[260:], "is damaged: "),
}


@pytest.mark.parametrize(("damage", "reason"), IMAGES.values(), ids=IMAGES)
def test_refuses_image(tmp_path, damage, reason):
    path = tmp_path / "x.png"
    path.write_bytes(damage(png(path)))
    with pytest.raises(DataError) as error:
        read_image(path)
    assert str(error.value).startswith(f"{path}: {reason}")


def test_refuses_what_unpacks_to_too_many_pixels(tmp_path, monkeypatch):
    png(tmp_path / "x.png", (40, 40))
    for limit in (1000, 500):  # Pillow warns above its limit, and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"unpacks to more than {limit:,} pixels; scale it down"):
            read_image(tmp_path / "x.png")


def test_an_image_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match="the image is not there"):
        read_image(tmp_path / "x.png")
    with pytest.raises(DataError, match="is a folder, not an image"):
        read_image(tmp_path)
