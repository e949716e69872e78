"""The file: a zip of three parts, stored as they are.

* ``manifest.json``: format and version, who wrote it, policy, report, preprocessing, class names,
  and the size and SHA-256 of the other parts. Its own SHA-256 is the zip's comment.
* ``network.json``: modules and graphs, as `codec` writes them.
* ``weights.safetensors``: the tensors.

The digests find damage, not forgery: who forges a file can write them too. What protects from a
forged file is that nothing in it is ever run (see `allowed`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

from convad_fx.artifact import codec
from convad_fx.compiler.checker import Report
from convad_fx.compiler.masked import MaskedModule
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ArtifactError, ConvadError

FORMAT, VERSION = "convad_fx artifact", 1
_MANIFEST, _NETWORK, _WEIGHTS = "manifest.json", "network.json", "weights.safetensors"
_NO_CODE = "nothing of it was run"
#: What wrong content raises where it is read.
_WRONG = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    RuntimeError,
    OverflowError,
    safetensors.SafetensorError,
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a file says of itself, without its weights.

    Attributes:
        versions: of convad_fx and torch that wrote it.
        policy: how activity travels.
        report: what the checker said.
        preprocessing: as given to `save`.
        class_names: as given to `save`; empty where none were.
    """

    versions: dict[str, str]
    policy: Policy
    report: Report
    preprocessing: dict[str, Any] | None
    class_names: tuple[str, ...]


def save(
    masked: MaskedModule,
    path: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write a masked network to one file, which `load` reads without the model's source.

    The file is written beside `path` and renamed: whatever happens, either the old file or the new
    one is there in whole. The same network gives the same bytes.

    Args:
        masked: what `convert` returned.
        path: of the file; an old one is replaced.
        preprocessing: what is done to pictures: a dict of numbers, texts and lists.
        class_names: one for each class.

    Raises:
        ArtifactError: the network calls what a file cannot name, or the file cannot be written.
    """
    if not isinstance(masked, MaskedModule):
        raise ArtifactError(
            f"a {type(masked).__name__} is no masked network",
            hint="pass what convad_fx.convert(model, example) returns",
        )
    network, tensors = codec.to_data(masked)
    parts = {_NETWORK: _json(network, "the network"), _WEIGHTS: safetensors.torch.save(tensors)}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": _versions(),
        "policy": masked.policy.to_dict(),
        "report": masked.report.to_dict(),
        "preprocessing": None if preprocessing is None else dict(preprocessing),
        "class_names": None if class_names is None else [str(name) for name in class_names],
        "parts": {
            name: {"size": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            for name, part in parts.items()
        },
    }
    parts = {_MANIFEST: _json(manifest, "preprocessing"), **parts}
    # a link is followed, and what it leads to replaced
    path = Path(os.path.realpath(path))
    try:
        _write_aside(path, parts)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written ({error.strerror or error})",
            hint="whatever was there before is as it was",
        ) from error


def _json(content: Any, what: str) -> bytes:
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{what} cannot be written as JSON ({error})",
            hint="use finite numbers, texts, lists and dicts",
        ) from error


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("convad_fx")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"convad_fx": own, "torch": str(torch.__version__)}


def _write_aside(path: Path, parts: dict[str, bytes]) -> None:
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with aside.open("xb") as file:
            _write_parts(file, parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)  # noqa: PTH105 (what the tests make fail)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    # the renaming itself, where folders can be opened
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_parts(file: IO[bytes], parts: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = hashlib.sha256(parts[_MANIFEST]).hexdigest().encode("ascii")
        for name, part in parts.items():
            # always the same time: the same network gives the same bytes
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), part)


# ---------------------------------------------------------------------------------------- reading
def load(
    path: str | os.PathLike[str], map_location: str | torch.device | None = None
) -> MaskedModule:
    """The masked network in a file: bit for bit the one that was saved, in eager mode.

    Nothing in the file is executed, and the model's source is not needed. Bit for bit holds for the
    torch version, the device and the number of threads that it was saved under.

    Args:
        path: of a file that `save` wrote.
        map_location: the device to put it on; default the CPU, wherever it was saved.

    Raises:
        ArtifactError: no such file, no artifact, damaged, or written by a newer version.
    """
    path = Path(path)
    with _reading(path) as archive:
        manifest = _manifest(archive, path)
        try:
            device = torch.device("cpu" if map_location is None else map_location)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ArtifactError(
                f"{map_location!r} is no device here ({str(error).splitlines()[0]})",
                hint='pass "cpu", or leave map_location out',
            ) from error
        network = json.loads(_part(archive, manifest, _NETWORK, path))
        tensors = safetensors.torch.load(_part(archive, manifest, _WEIGHTS, path))
        about = _about(manifest)
        return codec.from_data(network, tensors, about.policy, about.report, device)


def describe(path: str | os.PathLike[str]) -> Artifact:
    """What a file says of itself: policy, report, versions, preprocessing, class names.

    Raises:
        ArtifactError: as `load`.
    """
    path = Path(path)
    with _reading(path) as archive:
        return _about(_manifest(archive, path))


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Is there a file that looks like an artifact, whole or not?"""
    try:
        with Path(path).open("rb") as file:
            start = file.read(30 + len(_MANIFEST))
    except OSError:
        return False
    return start[:2] == b"PK" and start[30:] == _MANIFEST.encode("ascii")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip; whatever is wrong with it or in it is an `ArtifactError` that names the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except ArtifactError as error:
        raise ArtifactError(
            error.what if str(path) in error.what else f"{path}: {error.what}", hint=error.hint
        ) from error
    except ConvadError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror or error})", hint="check the path"
        ) from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        cut = is_artifact(path)
        raise ArtifactError(
            f"{path} is {'an artifact cut short or damaged' if cut else 'no artifact'} ({error})",
            hint="save it again, or copy it again"
            if cut
            else "pass a file that convad_fx.save wrote",
        ) from error
    except _WRONG as error:
        first = (str(error).splitlines() or [""])[0]
        raise ArtifactError(
            f"{path} does not hold what an artifact holds ({type(error).__name__}: {first})",
            hint=f"save it again; {_NO_CODE}",
        ) from error


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    names = archive.namelist()
    if _MANIFEST not in names:
        raise ArtifactError(f"{path} is no artifact", hint="pass a file that convad_fx.save wrote")
    content = _stored(archive, _MANIFEST)
    manifest: Any = json.loads(content)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no artifact", hint="pass a file that convad_fx.save wrote")
    version = manifest["version"]
    if not isinstance(version, int) or version > VERSION:
        by = manifest.get("written_by")
        raise ArtifactError(
            f"{path} has format version {version}, written by {by}; this knows up to {VERSION}",
            hint="update convad_fx",
        )
    if hashlib.sha256(content).hexdigest().encode("ascii") != archive.comment:
        raise _changed(path, _MANIFEST)
    if sorted(names) != sorted((_MANIFEST, _NETWORK, _WEIGHTS)):
        raise ArtifactError(
            f"{path} has the parts {', '.join(names)}", hint=f"save it again; {_NO_CODE}"
        )
    return manifest


def _part(archive: zipfile.ZipFile, manifest: dict[str, Any], name: str, path: Path) -> bytes:
    expected = manifest["parts"][name]
    content = _stored(archive, name)
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise _changed(path, name)
    return content


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    # packed parts could unpack to any size
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise zipfile.BadZipFile(f"{name} is packed")
    return archive.read(info)


def _changed(path: Path, name: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {name} was changed or damaged after it was written",
        hint=f"save or copy it again; {_NO_CODE}",
    )


def _about(manifest: dict[str, Any]) -> Artifact:
    policy = manifest["policy"]
    return Artifact(
        {str(name): str(version) for name, version in manifest["written_by"].items()},
        Policy(**policy),
        codec.report_of(manifest["report"]),
        manifest["preprocessing"],
        tuple(manifest["class_names"] or ()),
    )
