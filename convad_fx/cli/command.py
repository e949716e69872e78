"""From a command module to a typer command; options that belong together are one dataclass.

A command module defines `command`, whose docstring is the help text, and `EXAMPLES`. A parameter of
`command` whose type is a dataclass stands for one option per field.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand

FOUND, FAILED = 1, 2  # exit codes: a negative or partial result; no result


class LazyCommand(TyperCommand):
    """A command that is listed without importing its module, `convad_fx.cli.NAME`."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse the arguments by the command in the module."""
        module = importlib.import_module(f"convad_fx.cli.{self.name}")
        # Plain text: the same in a terminal, a pipe and a log.
        single = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        single.command(epilog=module.EXAMPLES)(flatten_options(module.command))
        return typer.main.get_command(single).make_context(info_name, args, *rest, **extra)


def flatten_options(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the fields of its dataclass parameters as parameters of its own.

    >>> @dataclasses.dataclass
    ... class Search:
    ...     depth: int = 3
    >>> def command(image: str, search: Search) -> None:
    ...     print(image, search)
    >>> flat = flatten_options(command)
    >>> list(inspect.signature(flat).parameters)
    ['image', 'depth']
    >>> flat(image="cat.png", depth=4)
    cat.png Search(depth=4)
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            groups[name] = hints[name]
            parameters += _field_parameters(hints[name])
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    @functools.wraps(function)
    def flat(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in dataclasses.fields(group)})
        function(**values)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _field_parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [_keyword(f.name, hints[f.name], f.default) for f in dataclasses.fields(group)]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    required = default in (dataclasses.MISSING, inspect.Parameter.empty)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=inspect.Parameter.empty if required else default,
    )
