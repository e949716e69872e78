"""ReX (the package rex-xai) searches as always, but its mutants are switched off, not painted.

ReX loads a script with `preprocess`, `prediction_function` and `model_shape`. `script` makes the
three for any network that this package converts:

    # my_script.py, for `ReX photo.jpg --script my_script.py`
    from convad_fx.integrations import rex

    preprocess, prediction_function, model_shape = rex.script("resnet50")

A ready one is beside this module; ``python -m convad_fx.integrations.rex`` prints where:

    export CONVAD_FX_MODEL=resnet50
    ReX photo.jpg --script $(python -m convad_fx.integrations.rex) --config rex.toml

On a machine without CUDA ReX needs ``gpu = false`` under ``[rex]`` in rex.toml.

ReX hands over pictures in which hidden pixels are painted. The paint here is a value that no
picture contains, so the mask is read off it exactly, whatever `mask_value` rex.toml asks for.
Pixels that ReX paints by other means (its test of robustness puts an explanation on noise) are
pixels. Its spotlights reckon with the paint as if it were responsibility: leave
`spotlight_objective_function` at "none".

Written for rex-xai 0.4.1, whose pages differ: `model_shape` is a list there, and `preprocess` is
given path, shape and device.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from convad_fx import images, models
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ImageError, ModelError, Unavailable
from convad_fx.module import MaskedModule

#: What hidden pixels are painted with: a whole number, exact in every floating-point dtype, and far
#: outside of what normalised pixels can be.
PAINT = -1024.0


class Script(NamedTuple):
    """What ReX looks for in a script."""

    preprocess: Callable[[str, Any, Any], Any]
    prediction_function: Callable[..., Any]
    model_shape: list[Any]


def script(
    model: str | MaskedModule,
    *,
    preprocess: images.Preprocess | None = None,
    size: tuple[int, int] | None = None,
    policy: Policy | None = None,
    **options: Any,
) -> Script:
    """The functions that ReX wants, for a network by name or a masked one.

    >>> preprocess, prediction_function, model_shape = script("demo")
    >>> model_shape
    ['N', 3, 96, 96]
    >>> prediction_function(torch.zeros(2, 3, 96, 96), raw=True).shape         # probabilities
    torch.Size([2, 10])

    Args:
        model: a name as on the command line (`resnet50`, `timm:...`, `package.module:function`, a
            file), or a masked network.
        preprocess: from a picture to the network's input; needed for a masked network.
        size: height and width of that input; needed for a masked network.
        policy: for a network by name; a file has its own.
        options: for a network by name: `weights`, `size` ..., as `convad_fx.models.resolve` takes.

    Raises:
        ModelError: a masked network without `preprocess` or `size`; a name that is none.
    """
    if isinstance(model, str):
        if size is not None:
            options["size"] = size[0]
        find = models.open_artifact if Path(model).is_file() else models.resolve
        classifier = find(model, **options)
        preprocess, size = preprocess or classifier.preprocess, classifier.size
        network = models.masked_network(classifier, torch.device("cpu"), policy)
    else:
        network = model
        if preprocess is None or size is None:
            raise ModelError(
                "it is not known how pictures become input of this network",
                hint="pass preprocess=convad_fx.images.standard(...) and size=(height, width)",
            )
    asked = _Asked(network, preprocess)
    return Script(asked.preprocess, asked.predict, ["N", 3, *size])


class _Asked:
    """One network, and the picture that ReX is at."""

    def __init__(self, network: MaskedModule, preprocess: images.Preprocess) -> None:
        self.network, self.steps = network, preprocess
        self.image: Tensor | None = None

    def preprocess(self, path: str, shape: Any, device: Any) -> Any:
        """ReX's `Data` for the picture at `path`."""
        x = images.to_input(images.open_image(path), self.steps)
        if tuple(x.shape[1:]) != tuple(shape[1:]):
            raise ImageError(
                f"{path} becomes input of shape {tuple(x.shape)}, and the script says {shape}",
                hint="pass the size that the preprocessing crops to",
            )
        if bool((x <= PAINT).any()):
            raise ImageError(
                f"{path} has values of {PAINT} and less after preprocessing, which mean hidden",
                hint="normalise pictures to a usual range",
            )
        self.network.to(device)
        self.image = x.to(device)
        shown = Image.fromarray(images.displayable(x, self.steps))
        return _data(shown, self.image, shape, device)

    def predict(self, mutants: Tensor, target: Any = None, raw: bool = False) -> Any:
        """ReX's predictions for painted mutants (N, 3, H, W); probabilities if `raw`."""
        logits = self.ask(mutants)
        if raw:
            return torch.softmax(logits, 1)
        return _predictions()(logits, target=target)

    def ask(self, mutants: Tensor) -> Tensor:
        """Logits (N, classes) of painted mutants, hidden pixels switched off."""
        hidden = (mutants == PAINT).all(1, keepdim=True)
        x = torch.where(hidden, self._behind(mutants, hidden), mutants)
        with torch.inference_mode():
            logits: Tensor = self.network(x, ~hidden)
        return logits

    def _behind(self, mutants: Tensor, hidden: Tensor) -> Tensor:
        """What the hidden pixels are. Only networks that are given the raw image read them."""
        nothing = torch.zeros((), dtype=mutants.dtype, device=mutants.device)
        if self.network.policy.input != "raw" or not bool(hidden.any()):
            return nothing
        if self.image is None or not bool((hidden | (mutants == self.image)).all()):
            raise ImageError(
                "ReX has hidden pixels of another picture than the last one it loaded",
                hint='use a policy with input="gate", which does not read hidden pixels',
            )
        return self.image


def _data(shown: Image.Image, x: Tensor, shape: Any, device: Any) -> Any:
    """ReX's `Data`, with our paint as its only one."""
    try:
        from rex_xai.input.input_data import Data
    except ImportError as error:
        raise _not_installed() from error

    class Switched(Data):  # type: ignore[misc]
        @property
        def mask_value(self) -> float:
            return PAINT

        @mask_value.setter
        def mask_value(self, value: Any) -> None:
            """ReX sets what rex.toml says; hidden pixels are hidden all the same."""

        def set_mask_value(self, m: Any) -> None:  # noqa: ARG002
            return None

    data = Switched(shown, shape, device)
    data.data, data.transposed = x, True
    return data


def _predictions() -> Callable[..., Any]:
    try:
        from rex_xai.responsibility.prediction import from_pytorch_tensor
    except ImportError as error:
        raise _not_installed() from error
    made: Callable[..., Any] = from_pytorch_tensor
    return made


def _not_installed() -> Unavailable:
    return Unavailable(
        "rex-xai is not installed",
        hint="it pins numpy 1.26, so give it an environment of its own: docs/rex.md",
    )


def where() -> Path:
    """The ready script."""
    return Path(__file__).with_name("rex_script.py")


if __name__ == "__main__":
    print(where())  # noqa: T201  (what it is asked for)


__all__ = ["PAINT", "Script", "script", "where"]
