"""Planted faults: each deliberate mistake in the compiler is caught by a test that names it.

Each fault is a replacement of text in a copy of the package; the catching test is then run on that
copy and must fail. Marked heavy: `pytest -m heavy tests/test_faults.py`. The list stands in
docs/faults.md (`--refresh` writes it anew).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "faults.md"

LAWS = "tests/test_properties.py::"
POLICIES = f"{LAWS}test_the_usual_network_meets_every_policy"
HIDDEN = f"{LAWS}test_hidden_values_never_matter"
TILES = "tests/compiler/lowering/test_tile.py"
BOXES = "tests/compiler/lowering/test_box.py"
TOYS = "tests/test_module.py::"
ORACLE = "tests/test_oracle.py::test_the_rule_agrees_with_the_operation"


@dataclass(frozen=True)
class Fault:
    """A mistake somebody could make: what, where, and which test must notice."""

    what: str
    file: str
    old: str
    new: str
    caught_by: str


FAULTS = (
    Fault(
        "the convolution's rule forgets dilation",
        "compiler/analysis/rules/window.py",
        "    dilation = per_axis(op.dilation, dims)\n",
        "    dilation = (1,) * dims\n",
        "tests/compiler/analysis/test_rules.py::test_step",
    ),
    Fault(
        "padding counts as visible",
        "compiler/kernels/window.py",
        "    if exists is None and all(lo == hi == 0 for lo, hi in padding):\n",
        "    if exists is None:\n",
        "tests/compiler/kernels/test_window.py::test_where_all_is_kept_all_is_active",
    ),
    Fault(
        "explicit padding counts as visible",
        "compiler/passes/insert_gates.py",
        '                    kwargs["value"] = False\n',
        '                    kwargs["value"] = True\n',
        ORACLE,
    ),
    Fault(
        "every gate that is not the last is dropped",
        "compiler/passes/simplify.py",
        "        if any(_needs(user, inserted(node).source, plan) for user in node.users):\n"
        "            continue\n",
        "",
        HIDDEN,
    ),
    Fault(
        "a gate multiplies instead of choosing",
        "compiler/kernels/gating.py",
        "    return (z.view(bits) & -activity.to(bits)).view(z.dtype)\n",
        "    return z * activity\n",
        HIDDEN,
    ),
    Fault(
        "union for intersection in a product",
        "compiler/kernels/join.py",
        '    """Activity of a product."""\n    return a & b\n',
        '    """Activity of a product."""\n    return a | b\n',
        ORACLE,
    ),
    Fault(
        "intersection for union in a sum",
        "compiler/kernels/join.py",
        "        return a | b if tau < 0.5 else a & b\n",
        "        return a & b\n",
        POLICIES,
    ),
    Fault(
        "hidden cells read as zero in a maximum",
        "compiler/analysis/steps.py",
        '    "max": -math.inf,\n',
        '    "max": 0.0,\n',
        "tests/compiler/test_golden.py::test_plan_and_code",
    ),
    Fault(
        "tau is applied to global reductions",
        "compiler/analysis/transfer/reduction.py",
        "        row = table.anywhere(row, axes)\n",
        '        how = Derivation("share_activity", (("axes", axes), ("tau", policy.tau)))\n'
        "        row = table.intern(how, (row,), left)\n",
        ORACLE,
    ),
    Fault(
        "concatenation takes the first operand's activity for all",
        "compiler/analysis/transfer/layout.py",
        "    if len(given) == len(op.input) and len(set(given)) == 1 and not"
        " table[given[0]].full[step.axis]:\n",
        "    if not table[given[0]].full[step.axis]:\n",
        ORACLE,
    ),
    Fault(
        "a batch split off a merged axis counts as positions",
        "compiler/analysis/transfer/layout.py",
        "        differs = not is_batch and any(",
        "        differs = any(",
        "tests/compiler/test_batch_axis.py::test_values_are_those_of_the_reference",
    ),
    Fault(
        "strict forgets that the whole window must be kept",
        "compiler/analysis/transfer/window.py",
        '    if strict:\n        options += (("whole", True),)\n    if step.ceil_mode:\n',
        "    if step.ceil_mode:\n",
        POLICIES,
    ),
    Fault(
        "readers of a tensor changed in place read the old one",
        "compiler/capture/in_place.py",
        "                user.replace_input_with(operand, node)\n",
        "                pass\n",
        f"{TOYS}test_theorem_1_bit_for_bit",
    ),
    Fault(
        "the model's own modules are used, in-place flags and all",
        "compiler/capture/module_tree.py",
        "            twin = object.__new__(type(module))\n"
        "            twin.__dict__.update(module.__dict__)\n",
        "            twin = module\n",
        f"{TOYS}test_the_model_is_untouched",
    ),
    Fault(
        "pixels are hoisted past a size that is read",
        "compiler/passes/simplify.py",
        "        if not _broadcasts(node, plan):\n            return 0\n",
        "",
        "tests/compiler/test_golden.py::test_a_size_read_before_the_first_gate_is_the_mask_batch",
    ),
    Fault(
        "a mean under `renormalize` divides by the full count",
        "compiler/kernels/phi.py",
        "    ratio = full.to(exact) / active.clamp(min=1).to(exact)\n",
        "    ratio = full.to(exact) / full.to(exact)\n",
        POLICIES,
    ),
    Fault(
        "a box takes what lies outside a grid for the zeros that were put around it",
        "compiler/lowering/grid_map.py",
        "            if not gated:\n",
        "            if False:\n",
        f"{BOXES}::test_a_box_that_ends_beyond_a_padded_grid_gives_the_same",
    ),
    Fault(
        "tiles are told apart by what they cover, not by all that they depend on",
        "engine/tile_hash.py",
        "        return (start - low).clip(0, cells), (start + n + high).clip(0, cells)\n",
        "        return start.clip(0, cells), (start + n).clip(0, cells)\n",
        f"{TILES}::test_shared_tiles_give_what_the_whole_image_gives",
    ),
    Fault(
        "of bytes that a patch covers in part, the rest counts as well",
        "engine/tile_hash.py",
        "        before = np.uint8(255) >> (first % 8).astype(np.uint8)",
        "        before = np.uint8(255) + 0 * (first % 8).astype(np.uint8)",
        "tests/engine/test_tile_hash.py::test_equal_activities_have_equal_sums_and_others_do_not",
    ),
)


@pytest.mark.heavy
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what.replace(" ", "-"))
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    for part in ("convad_fx", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    file = tmp_path / "convad_fx" / fault.file
    text = file.read_text()
    assert text.count(fault.old) == 1, "the fault no longer fits the code: write it anew"
    file.write_text(text.replace(fault.old, fault.new))
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "ci", "PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        fault.caught_by,
    ]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1, f"not caught by {fault.caught_by}:\n{run.stdout[-2000:]}"
    assert "AssertionError" in run.stdout or "Error" in run.stdout


def page() -> str:
    rows = [f"| {fault.what} | `{fault.file}` | `{fault.caught_by}` |" for fault in FAULTS]
    return "\n".join(
        [
            "# Planted faults",
            "",
            "Deliberate mistakes, and the test that must fail for each. Tried by",
            "`pytest -m heavy tests/test_faults.py`, each in a copy of the package.",
            "",
            "| mistake | in `convad_fx/` | caught by |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def test_the_page_lists_the_faults(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--refresh"):
        PAGE.write_text(page())
    assert len(FAULTS) >= 10
    assert PAGE.read_text() == page(), "run with --refresh"
