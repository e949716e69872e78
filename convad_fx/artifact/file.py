"""The file: a zip of three or four uncompressed parts.

* ``manifest.json``: format, version, versions of the packages that wrote it, policy, report,
  preprocessing, class names, and the SHA-256 of the other parts. Its own is the zip's comment.
* ``network.json``: modules and graphs, as `network_codec` writes them.
* ``weights.safetensors``: the tensors.
* ``compiled.pt2`` (optional): the network as machine code (see `machine_code`).

The digests detect damage, not forgery, since a forger can write them too. The protection from a
forged file is that nothing in it is ever run (see `allowed`). Machine code is the exception: it
runs only with ``load(path, trusted=True)``.
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
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from convad_fx.artifact import machine_code, network_codec
from convad_fx.artifact.dataclass_codec import structure, unstructure
from convad_fx.artifact.dry_run import require_runs
from convad_fx.artifact.graph_codec import identifier
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.policy import Policy
from convad_fx.errors import (
    ArtifactError,
    ConvadError,
    UntrustedArtifact,
    first_line,
    kind_of_special,
    require_regular_place,
)
from convad_fx.module import MaskedModule
from convad_fx.versions import versions

FORMAT, VERSION = "convad_fx artifact", 3
_MANIFEST, _NETWORK, _WEIGHTS = "manifest.json", "network.json", "weights.safetensors"
_COMPILED = "compiled.pt2"
_NO_CODE = "nothing in it was run"


@dataclass(frozen=True, slots=True)
class Artifact:
    """The description of a file, without its weights.

    Attributes:
        versions: of convad_fx and torch that wrote it.
        policy: of the conversion.
        report: the checker's.
        preprocessing: as given to `save`.
        class_names: as given to `save`; empty if none were given.
        compiled: the system and device that its machine code was made for, or None.
    """

    versions: dict[str, str]
    policy: Policy
    report: Report
    preprocessing: dict[str, Any] | None
    class_names: tuple[str, ...]
    compiled: dict[str, Any] | None = None


def save(
    masked: MaskedModule,
    path: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    compiled: bool = False,
) -> None:
    """Write a masked network to one file, which `load` reads without the model's source.

    >>> convad_fx.save(masked, "resnet50.cfx", class_names=names)     # doctest: +SKIP

    The file is written beside `path` and renamed, so that an interrupted save leaves the old file
    intact. The same network gives the same bytes.

    Args:
        masked: the result of `convert`.
        path: of the file; an old one is replaced.
        preprocessing: how pictures become inputs: a dict of numbers, strings and lists.
        class_names: one for each class.
        compiled: add machine code for this kind of processor or GPU, made by AOTInductor. Saving
            then needs a C++ compiler and a minute or more; a process that loads the file need not
            compile. It can only be loaded with ``trusted=True``.

    Raises:
        Unavailable, UnsupportedModel: machine code cannot be made here.
        ArtifactError: the network contains something that a file cannot hold, or the file cannot
            be written: there is a directory or a device at `path`.
    """
    if not isinstance(masked, MaskedModule):
        raise ArtifactError(
            f"expected a masked network, not a {type(masked).__name__}",
            hint="pass what convad_fx.convert(model, example) returns",
        )
    # a symbolic link is kept, and the file it points to replaced
    path = Path(os.path.realpath(path))
    require_regular_place(path, ArtifactError)
    network, tensors = network_codec.to_data(masked)
    parts = {_NETWORK: _json(network, "the network"), _WEIGHTS: safetensors.torch.save(tensors)}
    made_for = None
    if compiled:
        parts[_COMPILED], made_for = machine_code.build(masked)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": versions(),
        "policy": unstructure(masked.policy),
        "report": unstructure(masked.report),
        "preprocessing": None if preprocessing is None else dict(preprocessing),
        "class_names": None if class_names is None else [str(name) for name in class_names],
        "compiled": made_for,
        "parts": {
            name: {"size": len(part), "sha256": hashlib.sha256(part).hexdigest()}
            for name, part in parts.items()
        },
    }
    parts = {_MANIFEST: _json(manifest, "preprocessing"), **parts}
    try:
        _write_and_rename(path, parts)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"{path} cannot be written ({error.strerror or error})",
        hint="an old file at this path is unchanged",
    )


def _json(content: Any, what: str) -> bytes:
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{what} cannot be written as JSON ({error})",
            hint="use finite numbers, strings, lists and dicts",
        ) from error


def _write_and_rename(path: Path, parts: dict[str, bytes]) -> None:
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            _write_parts(file, parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (tests replace it by a function that fails)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # make the renaming durable too, where the system can open folders
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
            # a constant time, so that the same network gives the same bytes
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), part)


# ---------------------------------------------------------------------------------------- reading
def load(
    path: str | os.PathLike[str],
    map_location: str | torch.device | None = None,
    trusted: bool = False,
) -> MaskedModule:
    """Read a masked network from a file that `save` wrote; the model's source is not needed.

    >>> masked = convad_fx.load("resnet50.cfx")                       # doctest: +SKIP

    Results equal those of the saved network bit for bit, in eager mode with the same torch version,
    device and number of threads. Nothing in the file is executed unless `trusted` is set.

    Args:
        path: of the file.
        map_location: the device for its tensors; by default the CPU, wherever it was saved.
        trusted: run the machine code in a file of ``save(..., compiled=True)``. It has all your
            rights, so trust only your own files and those of people you know. Its results differ
            from the graph's by rounding.

    Raises:
        UntrustedArtifact: the file contains machine code, and `trusted` is not set.
        ArtifactError: no such file, not an artifact, damaged, or written by a newer version;
            machine code for another processor, device or version of torch.
    """
    path = Path(path)
    with _reading(path) as archive:
        manifest = _manifest(archive, path)
        try:
            device = torch.device("cpu" if map_location is None else map_location)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ArtifactError(
                f"no device {map_location!r} here ({first_line(error)})",
                hint='pass "cpu", or leave map_location out',
            ) from error
        about = _described(manifest)
        if about.compiled is not None:
            _require_runnable(path, about.compiled, device, trusted)
        network = json.loads(_part(archive, manifest, _NETWORK, path))
        tensors = safetensors.torch.load(_part(archive, manifest, _WEIGHTS, path))
        masked = network_codec.from_data(network, tensors, about.policy, about.report, device)
        if not trusted:
            require_runs(masked)
        if about.compiled is not None:
            package = _part(archive, manifest, _COMPILED, path)
            masked._compiled_call_impl = machine_code.Compiled(masked, package, about.compiled)
        return masked


def _require_runnable(
    path: Path, made_for: dict[str, Any], device: torch.device, trusted: bool
) -> None:
    """Machine code runs only in trusted files, and only on the system it was made for."""
    if not trusted:
        raise UntrustedArtifact(
            f"{path} contains machine code, which would run with all your rights",
            hint="if you trust its author, pass trusted=True (on the command line: --trusted);"
            " otherwise ask for a file that was saved without compiled=True",
        )
    if differences := machine_code.mismatch(made_for, device):
        raise ArtifactError(
            f"{path} contains machine code made for {differences}",
            hint="save the network again where it is to run, or without compiled=True",
        )


def describe(path: str | os.PathLike[str]) -> Artifact:
    """Read only the description of a file: policy, report, versions, class names ...

    Raises:
        ArtifactError: as `load`.
    """
    path = Path(path)
    with _reading(path) as archive:
        return _described(_manifest(archive, path))


def is_artifact(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file that begins like an artifact; it may be damaged."""
    path = Path(path)
    try:
        if kind_of_special(path):
            return False
        with path.open("rb") as file:
            start = file.read(30 + len(_MANIFEST))
    except OSError:
        return False
    return start[:2] == b"PK" and start[30:] == _MANIFEST.encode("ascii")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[zipfile.ZipFile]:
    """The opened zip; every error while reading becomes an `ArtifactError` that names the file."""
    try:
        if special := kind_of_special(path):
            raise ArtifactError(f"{path} is {special}", hint="pass a file that save wrote")
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UntrustedArtifact:
        raise
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
        if is_artifact(path):
            raise ArtifactError(
                f"{path} is an artifact cut short or damaged ({error})",
                hint="save it again, or copy it again",
            ) from error
        raise _no_artifact(path, f" ({error})") from error
    except Exception as error:  # whatever wrong content makes torch, torch.fx and Python raise
        raise ArtifactError(
            f"{path} has not the content of an artifact ({first_line(error, with_type=True)})",
            hint=f"save it again; {_NO_CODE}",
        ) from error


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    names = archive.namelist()
    if _MANIFEST not in names:
        raise _no_artifact(path)
    content = _stored(archive, _MANIFEST)
    manifest: Any = json.loads(content)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _no_artifact(path)
    version = manifest["version"]
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        by = manifest.get("written_by")
        raise ArtifactError(
            f"{path} has format version {version}, written by {by}; expected {VERSION}",
            hint="update convad_fx" if newer else "convert the network and save it again",
        )
    if hashlib.sha256(content).hexdigest().encode("ascii") != archive.comment:
        raise _wrong_digest(path, _MANIFEST)
    expected = [_MANIFEST, _NETWORK, _WEIGHTS]
    if sorted(names) != sorted(expected + [_COMPILED] * (manifest.get("compiled") is not None)):
        raise ArtifactError(
            f"{path} has the parts {', '.join(names)}", hint=f"save it again; {_NO_CODE}"
        )
    return manifest


def _part(archive: zipfile.ZipFile, manifest: dict[str, Any], name: str, path: Path) -> bytes:
    expected = manifest["parts"][name]
    content = _stored(archive, name)
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise _wrong_digest(path, name)
    return content


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    # a small compressed part could expand to any size
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise zipfile.BadZipFile(f"{name} is compressed")
    return archive.read(info)


def _no_artifact(path: Path, reason: str = "") -> ArtifactError:
    return ArtifactError(
        f"{path} is not an artifact{reason}", hint="pass a file that convad_fx.save wrote"
    )


def _wrong_digest(path: Path, name: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {name} was changed or damaged after it was written",
        hint=f"save or copy it again; {_NO_CODE}",
    )


def _described(manifest: dict[str, Any]) -> Artifact:
    report = structure(manifest["report"], Report)
    identifier(report.model)  # which becomes the name of a class
    preprocessing, compiled = manifest["preprocessing"], manifest.get("compiled")
    for name, value in (("preprocessing", preprocessing), ("compiled", compiled)):
        if not isinstance(value, dict | None):
            raise ValueError(f"{name} is a {type(value).__name__}, not an object")
    return Artifact(
        structure(manifest["written_by"], dict[str, str]),
        structure(manifest["policy"], Policy),
        report,
        preprocessing,
        structure(manifest["class_names"] or [], tuple[str, ...]),
        compiled,
    )
