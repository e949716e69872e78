"""The file: a zip of three or four parts, stored as they are.

* ``manifest.json``: format and version, who wrote it, policy, report, preprocessing, class names,
  and the size and SHA-256 of the other parts. Its own SHA-256 is the zip's comment.
* ``network.json``: modules and graphs, as `codec` writes them.
* ``weights.safetensors``: the tensors.
* ``compiled.pt2``, where asked for: the network as machine code (see `compiled`).

The digests find damage, not forgery: who forges a file can write them too. What protects from a
forged file is that nothing in it is ever run (see `allowed`). Machine code is the exception: it
runs only where `load` is told that the file is trusted.
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

import safetensors
import safetensors.torch
import torch

from convad_fx.artifact import codec
from convad_fx.artifact import compiled as machine
from convad_fx.compiler.analysis.report import Report
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ArtifactError, ConvadError, UntrustedArtifact, first_line
from convad_fx.module import MaskedModule
from convad_fx.versions import versions

FORMAT, VERSION = "convad_fx artifact", 3
_MANIFEST, _NETWORK, _WEIGHTS = "manifest.json", "network.json", "weights.safetensors"
_COMPILED = "compiled.pt2"
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
        compiled: what the machine code in it was made for; None where there is none.
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

    The file is written beside `path` and renamed: whatever happens, either the old file or the new
    one is there in whole. The same network gives the same bytes.

    Args:
        masked: what `convert` returned.
        path: of the file; an old one is replaced.
        preprocessing: what is done to pictures: a dict of numbers, texts and lists.
        class_names: one for each class.
        compiled: add the network as machine code for this kind of processor or GPU, by AOTInductor.
            That takes a C++ compiler and a minute or more, here and now; where the file is loaded,
            the first result comes without compiling. Such a file is loaded as trusted only.

    Raises:
        Unavailable, UnsupportedModel: it cannot be compiled here.
        ArtifactError: the network calls what a file cannot name, or the file cannot be written.
    """
    if not isinstance(masked, MaskedModule):
        raise ArtifactError(
            f"a {type(masked).__name__} is no masked network",
            hint="pass what convad_fx.convert(model, example) returns",
        )
    network, tensors = codec.to_data(masked)
    parts = {_NETWORK: _json(network, "the network"), _WEIGHTS: safetensors.torch.save(tensors)}
    made_for = None
    if compiled:
        parts[_COMPILED], made_for = machine.build(masked)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": versions(),
        "policy": masked.policy.to_dict(),
        "report": masked.report.to_dict(),
        "preprocessing": None if preprocessing is None else dict(preprocessing),
        "class_names": None if class_names is None else [str(name) for name in class_names],
        "compiled": made_for,
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
    path: str | os.PathLike[str],
    map_location: str | torch.device | None = None,
    trusted: bool = False,
) -> MaskedModule:
    """The masked network in a file: bit for bit the one that was saved, in eager mode.

    Nothing in the file is executed, unless it is said to be trusted and holds machine code; the
    model's source is not needed. Bit for bit holds for the
    torch version, the device and the number of threads that it was saved under.

    Args:
        path: of a file that `save` wrote.
        map_location: the device to put it on; default the CPU, wherever it was saved.
        trusted: run the machine code in it, where there is some (`save(..., compiled=True)`). It
            can do whatever you can, so say so of your own files and of those of people you trust.
            Its results differ from the graph's by rounding.

    Raises:
        UntrustedArtifact: there is machine code in it, and nobody has said that it is trusted.
        ArtifactError: no such file, no artifact, damaged, or written by a newer version; machine
            code for another processor, device or version of torch.
    """
    path = Path(path)
    with _reading(path) as archive:
        manifest = _manifest(archive, path)
        try:
            device = torch.device("cpu" if map_location is None else map_location)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ArtifactError(
                f"{map_location!r} is no device here ({first_line(error)})",
                hint='pass "cpu", or leave map_location out',
            ) from error
        about = _about(manifest)
        if about.compiled is not None:
            _vouched_for(path, about.compiled, device, trusted)
        network = json.loads(_part(archive, manifest, _NETWORK, path))
        tensors = safetensors.torch.load(_part(archive, manifest, _WEIGHTS, path))
        masked = codec.from_data(network, tensors, about.policy, about.report, device)
        if about.compiled is not None:
            package = _part(archive, manifest, _COMPILED, path)
            masked._compiled_call_impl = machine.Compiled(masked, package, about.compiled)
        return masked


def _vouched_for(path: Path, made_for: dict[str, Any], device: torch.device, trusted: bool) -> None:
    """Machine code is run only if somebody says so, and only where it can run."""
    if not trusted:
        raise UntrustedArtifact(
            f"{path} holds machine code, which would run with all your rights",
            hint="if you trust whoever made it, pass trusted=True (on the command line: --trusted);"
            " else ask for a file that was saved without compiled=True",
        )
    if why := machine.misfits(made_for, device):
        raise ArtifactError(
            f"{path} holds machine code made for {why}",
            hint="save the network again where it is to run, or without compiled=True",
        )


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
        cut = is_artifact(path)
        raise ArtifactError(
            f"{path} is {'an artifact cut short or damaged' if cut else 'no artifact'} ({error})",
            hint="save it again, or copy it again"
            if cut
            else "pass a file that convad_fx.save wrote",
        ) from error
    except _WRONG as error:
        raise ArtifactError(
            f"{path} does not hold what an artifact holds ({first_line(error, with_type=True)})",
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
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        by = manifest.get("written_by")
        raise ArtifactError(
            f"{path} has format version {version}, written by {by}; this knows {VERSION}",
            hint="update convad_fx" if newer else "convert the network and save it again",
        )
    if hashlib.sha256(content).hexdigest().encode("ascii") != archive.comment:
        raise _changed(path, _MANIFEST)
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
        manifest.get("compiled"),
    )
