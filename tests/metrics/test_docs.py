"""docs/metrics.md: complete, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

from convad_fx import metrics

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_every_function_is_on_the_page() -> None:
    functions = [name for name in metrics.__all__ if name[0].islower()]
    missing = [n for n in functions if not re.search(rf"`{n}[`(]", PAGE)]
    assert not missing
    assert "Normalisation" in PAGE


def test_the_example_runs(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "'fill': 'zero'" in lines[0]
    assert "'paint': 'black'" in lines[1]
