"""Which CNNs of torchvision can be exported, masked: torch.export, and ONNX in onnxruntime.

    python -m benchmarks.export [--models NAME ...] [--write docs/export.md] [--results FILE]

Random weights (batch statistics taken from random images, so that logits are of order 1), small
images (64 pixels; 75 for inception_v3), batches of 1 and 3 (the example had 2), with parts hidden
and with everything kept, on the CPU. Reported is the largest difference of
any logit from the masked network in torch, as a share of the largest logit. A network that comes
out wrong by more than `LIMIT` is no success. Deep networks of random weights can be so sensitive
that rounding to float32 alone does that: such calls are told apart by asking torch in float64.
Takes about an hour for all of them; what is in `--results` already (JSON lines) is not done again.
`--write` replaces the table in a page.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import convad_fx
from convad_fx.errors import ConvadError

LIMIT = 1e-3
#: A call is too sensitive where float32 alone takes torch a third as far from float64.
ROUNDINGS = 3
BEGIN, END = "<!-- benchmarks.export -->", "<!-- end -->"


def names() -> list[str]:
    """Every CNN classifier; transformers are left out: masking stops at them."""
    known = torchvision.models.list_models(module=torchvision.models)
    return [name for name in known if not name.startswith(("vit", "swin", "maxvit"))]


def build(name: str) -> nn.Module:
    """Random weights, awake: otherwise deep networks answer 1e-9 to everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet's default initialisation
        fast = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **fast).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("layer_scale"):  # of ConvNeXt: 1e-6
                weight.fill_(0.5)
        model(torch.rand(8, 3, size_of(name), size_of(name)))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def size_of(name: str) -> int:
    return 75 if name == "inception_v3" else 64


def batch(n: int, size: int) -> tuple[Tensor, Tensor]:
    """Images, and masks: a box with holes of four rows."""
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 3, size, size, generator=generator)
    mask = torch.zeros(n, 1, size, size, dtype=torch.bool)
    mask[..., size // 4 :, : 3 * size // 4] = True
    rows = torch.rand(n, 1, size // 4 + 1, 1, generator=generator) > 0.2
    return x, mask & rows.repeat_interleave(4, 2)[:, :, :size]


@dataclass(frozen=True)
class Apart:
    """How far a run is from the masked network, as shares of the largest logit.

    Args:
        worst: over the calls, but those that are too sensitive to tell.
        rounded: over these: there, float32 takes torch itself as far from float64.
    """

    worst: float
    rounded: float | None


def difference(
    run: Callable[[Tensor, Tensor], Tensor], masked: convad_fx.MaskedModule, size: int
) -> Apart:
    """How far `run` is from the masked network."""
    exact = functools.cache(lambda: copy.deepcopy(masked).double())
    told: list[float] = []
    rounded: list[float] = []
    with torch.no_grad():
        for n in (1, 3):
            x, mask = batch(n, size)
            everything = torch.ones_like(mask)
            whole = masked(x, everything)
            matters = (masked(x, mask) - whole).abs().max() / whole.abs().max()
            assert matters > 10 * LIMIT, f"masks change logits by {matters:.0e} only"
            calls = [(x, mask), (x, everything)]
            if masked.policy.input != "raw":
                calls.append((torch.where(mask, x, 1e30), mask))
            for image, kept in calls:
                expected, found = masked(image, kept), run(image, kept)
                apart = _apart(found, expected)
                sensitive = apart > LIMIT and apart <= ROUNDINGS * _apart(
                    expected, exact()(image.double(), kept)
                )
                (rounded if sensitive else told).append(apart)
    return Apart(max(told, default=float("inf")), max(rounded, default=None))


def _apart(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    apart = (found - expected).abs().max() / expected.abs().max()
    return float(apart.nan_to_num(nan=torch.inf))  # a NaN is as far off as can be


def by_torch(masked: convad_fx.MaskedModule) -> Callable[[Tensor, Tensor], Tensor]:
    return convad_fx.export(masked).module()


def by_onnx(masked: convad_fx.MaskedModule, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    import onnxruntime

    convad_fx.export_onnx(masked, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor, mask: Tensor) -> Tensor:
        (logits,) = session.run(None, {"image": x.numpy(), "mask": mask.numpy()})
        return torch.from_numpy(logits)

    return run


def plainly(name: str) -> str:
    """Does torch.export capture the network itself, before it is masked?"""
    x = torch.zeros(2, 3, size_of(name), size_of(name))
    dim = torch.export.Dim("batch", min=1, max=65536)
    try:
        torch.export.export(build(name), (x,), dynamic_shapes=({0: dim},), strict=False)
    except Exception as error:  # noqa: BLE001  (whatever it raises is the answer)
        return f"no ({type(error).__name__})"
    return "yes"


def row(name: str) -> dict[str, Any]:
    """What became of one network."""
    size = size_of(name)
    found: dict[str, Any] = {"name": name, "plain": plainly(name)}
    masked = convad_fx.convert(build(name), torch.zeros(1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
            "torch.export": lambda: by_torch(masked),
            "ONNX": lambda: by_onnx(masked, Path(folder, "net.onnx")),
        }
        for way, make in ways.items():
            began = time.perf_counter()
            try:
                apart = difference(make(), masked, size)
                found[way] = apart.worst
                if apart.rounded is not None:
                    found[f"{way} rounded"] = apart.rounded
            except ConvadError as error:
                found[way] = error.what
            found[f"{way} seconds"] = round(time.perf_counter() - began, 1)
    return found


def good(found: Any) -> bool:
    return isinstance(found, float) and found <= LIMIT


def _cell(found: Any, rounded: float | None = None) -> str:
    if isinstance(found, str):
        return f"no: {found[:150]}".replace("|", "/")
    cell = f"{found:.0e}" if good(found) else f"**{found:.0e}**"
    return cell if rounded is None else f"{cell}; {rounded:.0e} by rounding"


def table(rows: list[dict[str, Any]]) -> str:
    ways = ("torch.export", "ONNX")
    tally = ", ".join(f"{way} {sum(good(r[way]) for r in rows)}" for way in ways)
    plain = sum(r["plain"] == "yes" for r in rows)
    lines = [
        f"Of {len(rows)} networks tried ({len(names())} there are), torch.export captures {plain}"
        f" as they are. Masked: {tally}.",
        "",
        "| network | as it is | torch.export, masked | ONNX, masked |",
        "|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: str(r["name"])):
        cells = " | ".join(_cell(r[way], r.get(f"{way} rounded")) for way in ways)
        lines.append(f"| {r['name']} | {r['plain']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--models", nargs="+", default=names())
    asked.add_argument("--results", type=Path, help="JSON lines, one network each")
    asked.add_argument("--write", type=Path, help="a page to put the table in")
    given = asked.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    if given.results is not None and given.results.exists():
        rows = [json.loads(line) for line in given.results.read_text().splitlines()]
    for name in given.models:
        if any(r["name"] == name for r in rows):
            continue
        rows.append(row(name))
        print(json.dumps(rows[-1]), flush=True)
        if given.results is not None:
            with given.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    text = table(rows)
    print(text)
    if given.write is not None:
        page = given.write.read_text()
        before, rest = page.split(BEGIN)
        given.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
