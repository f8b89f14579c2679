"""Where models and data lie: ``file:///path``, ``pvc://claim/path``, ``hf://owner/name[/path]``.

Invariant: what comes back exists and may be read; everything else is an error that names the field.
"""

import difflib
import errno
import os
import stat
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from finetune_trainer.errors import Denied, NotFoundError, PeerLostError, PlatformError, SpecFault, TrainerError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Kind = Literal["model", "dataset"]

_UNUSED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.onnx", "*.gguf"]
"""Files of a model repository that are never read: pickles, and weights for other frameworks."""


def resolve_source(source: str, revision: str | None, *, field: str, volumes: Path, kind: Kind) -> Path:
    """Local path of ``source``; what an ``hf://`` source names is downloaded (once, into the hub's own cache).

    ``pvc://claim/path`` is ``volumes/claim/path``. Raises NotFoundError, Denied, PeerLostError (the hub cannot be
    reached), PlatformError (the disk is full) or SpecFault (not the name of a repository), each naming ``field``.
    """
    scheme, _, rest = source.partition("://")
    if scheme == "hf":
        return _download(rest, revision, field=field, kind=kind)
    path = Path(unquote(rest)) if scheme == "file" else _in_claim(unquote(rest), volumes, field)
    _check_readable(path, f"{field}: {source}")
    return path


def _in_claim(rest: str, volumes: Path, field: str) -> Path:
    claim, _, inner = rest.partition("/")
    root = volumes / claim
    path = Path(os.path.normpath(root / inner.lstrip("/")))
    if not path.is_relative_to(root):
        raise SpecFault(f"{field}: pvc://{rest} leads out of the claim; remove the ..")
    if not root.is_dir():
        raise NotFoundError(
            f"{field}: pvc://{rest}: claim {claim} is not mounted at {root}; does the job's namespace have it?"
        )
    return path


def _check_readable(path: Path, told: str) -> None:
    """``told``: the field and source, for messages."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except PermissionError as error:
        raise Denied(f"{told}: may not look into {path.parent}; give this user access to it") from error
    except OSError as error:
        raise NotFoundError(f"{told}: {path} is not there{_hint(path)}") from error
    if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
        raise Denied(f"{told}: {path} may not be read; give this user access to it")


def _hint(path: Path) -> str:
    """What to do about a path that is not there: the nearest name beside it, or the part of it that does exist."""
    parent = path.parent
    if parent.is_dir() and os.access(parent, os.R_OK):
        near = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=1)
        return f"; did you mean {parent / near[0]}?" if near else f"; check the name in {parent}"
    existing = next(folder for folder in parent.parents if folder.exists())
    return f"; nor is {parent}, only {existing} is: is the volume mounted?"


def _download(rest: str, revision: str | None, *, field: str, kind: Kind) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    repository, inner = _repository(rest)
    told = f"{field}: hf://{rest}"
    # HfHubHTTPError's bases are OSError and the HTTP client's own error, whichever client this version of the hub uses.
    network_or_disk: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
    try:
        snapshot = snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            allow_patterns=[inner, f"{inner}/**"] if inner else None,
            ignore_patterns=_UNUSED if kind == "model" else None,
        )
    except HFValidationError as error:
        raise SpecFault(f"{told}: {repository} is not the name of a repository (owner/name)") from error
    except OfflineModeIsEnabled as error:
        raise NotFoundError(f"{told}: is not in the local cache, and HF_HUB_OFFLINE forbids to download it") from error
    except network_or_disk as error:
        raise _hub_error(error, told, revision) from error
    path = Path(snapshot) / inner
    if not path.exists():
        raise NotFoundError(f"{told}: {repository} has no {inner}")
    return path


def _repository(rest: str) -> tuple[str, str]:
    """``owner/name/path`` → repository and path in it."""
    parts = rest.strip("/").split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def _hub_error(error: BaseException, told: str, revision: str | None) -> TrainerError:
    """What an error of the hub means for the run."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
        error = error.__cause__ or error  # the library wraps whatever kept it from the hub, a refusal as well
    if isinstance(error, HfHubHTTPError):
        refusal = _refusal(error, told, revision)
        if refusal:
            return refusal
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return NotFoundError(f"{told}: is not in the local cache, and HF_HUB_OFFLINE forbids to download it")
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return PlatformError(f"{told}: no space left for the download in {constants.HF_HUB_CACHE}")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(f"{told}: {constants.HF_HUB_CACHE} is not writable; set HF_HOME to a folder that is")
    return PeerLostError(
        f"{told}: the hub cannot be reached ({type(error).__name__}); try again, or use file:// or pvc://"
    )


def _refusal(error: "HfHubHTTPError", told: str, revision: str | None) -> TrainerError | None:
    """What an answer of the hub means; None if it is no answer to this request (the hub is overloaded, say)."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return Denied(f"{told}: its owner must grant access; ask for it on its page, and set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return NotFoundError(f'{told}: has no revision "{revision}"')
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(f"{told}: is not on the hub, or is private: check the name, or set HF_TOKEN")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return Denied(f"{told}: the hub refused access (HTTP {status}); check HF_TOKEN")
    return None
