"""The program `convad-fx`: its commands, how they are listed, and how errors end it."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from convad_fx.allocator import keep_memory
from convad_fx.cli.command import FAILED, LazyCommand
from convad_fx.errors import ConvadError, first_line

COMMANDS = {
    "check": "Can regions be switched off inside a network?",
    "compile": "Save a masked network to a file.",
    "export": "Export a masked network to ONNX.",
    "explain": "Which part of an image suffices?",
    "compare": "Compare switching off with painting over.",
    "tune": "Which policy suits a network and its images?",
    "demo": "Try it, without any download.",
}


class OneLineErrors(TyperGroup):
    """Commands whose own errors are one line on stderr; only a bug shows a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; our errors and running out of memory end in one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except ConvadError as error:
            message = str(error)
        except RuntimeError as error:
            import torch  # slow, and not needed to list the commands

            if not isinstance(error, torch.OutOfMemoryError):
                raise
            message = f"{first_line(error)}; pass a smaller `--batch-size`, or `--device cpu`"
        typer.echo(f"convad-fx: {message}", err=True)
        raise typer.Exit(FAILED)


app = typer.Typer(
    name="convad-fx",
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    # Plain text: the same in a terminal, a pipe and a log.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _name, _summary in COMMANDS.items():
    app.command(_name, cls=LazyCommand, short_help=_summary)(lambda: None)


def _print_versions(requested: bool) -> None:
    if requested:
        from convad_fx.versions import versions  # imports torch

        typer.echo(", ".join(f"{name} {version}" for name, version in versions().items()))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions."),
    ] = False,
) -> None:
    """Explain image classifiers by switching regions off inside them, not by painting over them."""
    keep_memory()
