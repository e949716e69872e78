"""The checker against networks that break Assumption 1: found, all at once, and rightly so.

Rightly so: where a conversion is forced, a law of docs/meaning.md breaks, and a small image and
mask show it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convad_fx
from convad_fx import errors
from convad_fx.compiler.analysis import steps
from convad_fx.compiler.analysis.rules import registry, window
from convad_fx.compiler.capture import op_schema, spellings
from tests.compiler.broken import (
    BROKEN,
    ESCAPED,
    HIDDEN,
    SHAPE,
    WIDTH,
    Broken,
    Call,
    Cumsum,
    Fourier,
    Host,
    Roll,
    Several,
    Sort,
)

DOCS = Path(__file__).parents[3] / "docs"
FORCED = [case for case in BROKEN if case.breaks != "untraceable"]


def name_of(case: Broken) -> str:
    return case.fault.__name__


def host(fault: nn.Module) -> Host:
    torch.manual_seed(0)
    return Host(fault).eval()


# ----------------------------------------------------------------------------------- the findings


@pytest.mark.parametrize("case", BROKEN, ids=name_of)
def test_every_fault_is_found_and_nothing_else(case: Broken) -> None:
    report = convad_fx.check(host(case.fault()), torch.zeros(SHAPE))
    assert not report.ok
    assert [(f.path, f.op) for f in report.findings] == [(s.path, s.op) for s in case.says]
    for finding, says in zip(report.findings, case.says, strict=True):
        assert str(finding).startswith(says.place)
        assert says.why in finding.why
        assert finding.hint
        assert str(finding) in str(report)


@pytest.mark.parametrize("case", FORCED, ids=name_of)
def test_conversion_is_refused_with_every_finding(case: Broken) -> None:
    with pytest.raises(errors.UnsupportedModel) as caught:
        convad_fx.convert(host(case.fault()), torch.zeros(SHAPE))
    for says in case.says:
        assert says.place in str(caught.value)
        assert says.why in str(caught.value)


@pytest.mark.parametrize(
    "case", [case for case in BROKEN if case.breaks == "untraceable"], ids=name_of
)
def test_what_nothing_captures_cannot_be_forced(case: Broken) -> None:
    for on_finding in ("raise", "ignore"):
        with pytest.raises(errors.UntraceableModel, match=case.says[0].why):
            convad_fx.convert(host(case.fault()), torch.zeros(SHAPE), on_finding=on_finding)


def test_checking_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """torch.export prints graphs where it fails."""
    case = next(case for case in BROKEN if case.fault.__name__ == "ByValue")
    assert not convad_fx.check(host(case.fault()), torch.zeros(SHAPE)).ok
    assert capfd.readouterr() == ("", "")


def test_an_attribute_is_called_by_its_name() -> None:
    report = convad_fx.check(Call(lambda x: x.mean((1, 2)).mT).eval(), torch.zeros(SHAPE))
    assert [(f.path, f.op) for f in report.findings] == [("mT", ".mT")]
    assert "batch" in report.findings[0].why


def test_without_the_fault_there_is_no_finding() -> None:
    assert convad_fx.check(host(nn.Identity()), torch.zeros(SHAPE)).ok


@pytest.mark.parametrize("gone", range(4))
def test_each_finding_goes_with_its_operation(gone: int) -> None:
    expected = next(case for case in BROKEN if case.fault is Several).says
    model = host(Several())
    removed = ("left.1", "right.norm", "down", "end")[gone]
    model.fault.set_submodule(removed, nn.Identity().eval())
    report = convad_fx.check(model, torch.zeros(SHAPE))
    assert [f.path for f in report.findings] == [
        says.path for i, says in enumerate(expected) if i != gone
    ]


# ---------------------------------------------------------------------------------- the witnesses


def case_of(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, masks, and what else might be under the masks."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *SHAPE[1:], generator=generator)
    masks = torch.rand(3, 1, *SHAPE[2:], generator=generator) > (0.2, 0.5, 0.8)[seed % 3]
    return x, masks, torch.where(masks, x, 10 * torch.randn(x.shape, generator=generator))


def differ(a: Tensor, b: Tensor) -> bool:
    """More than rounding explains."""
    return not torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def theorem_1_fails(model: nn.Module, masked: convad_fx.MaskedModule, seed: int) -> bool:
    x, _, _ = case_of(seed)
    return not torch.equal(masked(x), model(x))


def hidden_values_matter(model: nn.Module, masked: convad_fx.MaskedModule, seed: int) -> bool:
    x, masks, other = case_of(seed)
    return differ(masked(x, masks), masked(other, masks))


def images_change_each_other(model: nn.Module, masked: convad_fx.MaskedModule, seed: int) -> bool:
    x, masks, _ = case_of(seed)
    alone = torch.cat([masked(x[i : i + 1], masks[i : i + 1]) for i in range(len(x))])
    return differ(masked(x, masks), alone)


WITNESSES: dict[str, Callable[[nn.Module, convad_fx.MaskedModule, int], bool]] = {
    "theorem 1": theorem_1_fails,
    "hidden": hidden_values_matter,
    "batch": images_change_each_other,
}
SEEDS = range(3)


@torch.no_grad()
def broken_laws(model: nn.Module) -> set[str]:
    masked = convad_fx.convert(model, torch.zeros(SHAPE), on_finding="ignore")
    return {
        law for law, fails in WITNESSES.items() if any(fails(model, masked, seed) for seed in SEEDS)
    }


@pytest.mark.parametrize("case", FORCED, ids=name_of)
def test_forcing_the_conversion_breaks_a_law(case: Broken) -> None:
    broken = broken_laws(host(case.fault()))
    if case.breaks == "none":
        assert not broken, "refused with reason after all: say which law breaks"
        assert case.because
    else:
        assert case.breaks in broken


def test_the_witnesses_accuse_no_sound_network() -> None:
    for sound in (nn.Identity(), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH)):
        assert broken_laws(host(sound)) == set()


@pytest.mark.parametrize("fault", [Roll, Sort, Cumsum, Fourier])
@torch.no_grad()
def test_behind_a_window_the_gates_decide(fault: type[nn.Module]) -> None:
    """No hidden pixel arrives there; but what inactive cells hold does, so law 5 breaks."""
    model = host(fault())
    model.stem = nn.Conv2d(3, WIDTH, 3, 1, 1).eval()
    example = torch.zeros(SHAPE)
    optimised = convad_fx.convert(model, example, on_finding="ignore")
    naive = convad_fx.convert(model, example, on_finding="ignore", simplify=False)
    x, masks, _ = case_of(0)
    assert not hidden_values_matter(model, optimised, 0)
    assert differ(optimised(x, masks), naive(x, masks))


# ------------------------------------------------------------------------------ what gets away


@pytest.mark.parametrize(
    "build",
    [
        *HIDDEN,
        *(
            pytest.param(
                build, marks=pytest.mark.xfail(reason=why, raises=AssertionError, strict=True)
            )
            for build, why in ESCAPED
        ),
    ],
    ids=lambda build: build.__name__,
)
def test_what_is_accepted_obeys_the_laws(build: Callable[[], Host]) -> None:
    model = build().eval()
    if convad_fx.check(model, torch.zeros(SHAPE)).ok:
        assert broken_laws(model) == set()


# ------------------------------------------------------------------------------------- the pages


def test_the_how_to_works_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/add-a-rule.md: its row and its rule, in a compiler that has neither, and its example."""
    page = (DOCS / "add-a-rule.md").read_text()
    blocks = re.findall(r"(?:<!-- (\w+) -->\n)?```python\n(.*?)```", page, re.S)
    row, step_rule = (code for mark, code in blocks if mark in ("row", "rule"))
    example = next(code for _, code in blocks if "import convad_fx" in code)
    rows: dict[str, Any] = {}
    exec(f"rows = ({row})", vars(spellings) | {"rows": ()}, rows)
    tables = spellings.Tables(spellings.SPELLINGS + rows["rows"])
    monkeypatch.setattr(op_schema, "TABLES", tables)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    exec(step_rule, vars(window) | {"Expand": steps.Expand})
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(example, "add-a-rule.md", "exec"), {"__name__": "example"})
    assert "Assumption 1 holds" in printed.getvalue()


def test_the_page_shows_the_real_report(request: pytest.FixtureRequest) -> None:
    """docs/assumption.md: what its example prints stands right below it."""
    page = DOCS / "assumption.md"
    text = page.read_text()
    block = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert block, "the page has no example followed by its output"
    code, shown = block.groups()
    printed = io.StringIO()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page.name, "exec"), {"__name__": "example"})
    if request.config.getoption("--refresh"):
        start, end = block.span(2)
        page.write_text(text[:start] + printed.getvalue() + text[end:])
        shown = printed.getvalue()
    assert shown == printed.getvalue(), f"run `pytest {__file__} --refresh` and read the diff"
