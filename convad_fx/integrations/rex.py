"""Scripts for ReX (the package rex-xai) that switch hidden pixels off instead of painting them.

ReX loads a script with `preprocess`, `prediction_function` and `model_shape`. `script` makes these
three for any network that this package can convert:

    # my_script.py, for `ReX photo.jpg --script my_script.py`
    from convad_fx.integrations import rex

    preprocess, prediction_function, model_shape = rex.script("resnet50")

rex_script.py is a ready script; ``python -m convad_fx.integrations.rex`` prints its path:

    export CONVAD_FX_MODEL=resnet50
    ReX photo.jpg --script $(python -m convad_fx.integrations.rex) --config rex.toml

ReX passes images in which hidden pixels are painted. The paint is a value that no image contains,
so the mask is recovered exactly. docs/rex.md has the settings of rex.toml and the limits.

Written for rex-xai 0.4.1, where, unlike in its documentation, `model_shape` is a list, and
`preprocess` receives path, shape and device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from convad_fx import images, models
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ImageError, ModelError, Unavailable
from convad_fx.explain.evaluator import check_answers
from convad_fx.metrics.robustness import score_of_model
from convad_fx.module import MaskedModule

#: Paint of hidden pixels: exact in every floating-point dtype, and far outside the range of
#: normalised pixels.
PAINT = -1024.0


class Script(NamedTuple):
    """The names that ReX reads from a script."""

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
    """The functions that ReX requires, for a network by name or a masked network.

    >>> preprocess, prediction_function, model_shape = script("demo")
    >>> model_shape
    ['N', 3, 96, 96]
    >>> prediction_function(torch.zeros(2, 3, 96, 96), raw=True).shape         # probabilities
    torch.Size([2, 10])

    Args:
        model: a name as on the command line (`resnet50`, `timm:...`, `package.module:function`, a
            file), or a masked network.
        preprocess: from a picture to the network's input; required for a masked network.
        size: height and width of that input; required for a masked network.
        policy: for a network by name; a file contains its own.
        options: for a network by name: `weights`, `size` ..., as `convad_fx.models.resolve` takes.

    Raises:
        ModelError: a masked network without `preprocess` or `size`; an unknown name.
    """
    if isinstance(model, str):
        if size is not None:
            options["size"] = size[0]
        load = models.open_artifact if Path(model).is_file() else models.resolve
        classifier = load(model, **options)
        preprocess, size = preprocess or classifier.preprocess, classifier.size
        network = models.masked_network(classifier, torch.device("cpu"), policy)
    else:
        network = model
        if preprocess is None or size is None:
            raise ModelError(
                "the preprocessing of a masked network is not known",
                hint="pass preprocess=convad_fx.images.standard(...) and size=(height, width)",
            )
    predictor = _Predictor(network, preprocess)
    return Script(predictor.preprocess, predictor.predict, ["N", 3, *size])


class _Predictor:
    """A network, and the picture that ReX loaded last."""

    def __init__(self, network: MaskedModule, preprocess: images.Preprocess) -> None:
        self.network, self._preprocess = network, preprocess
        self.image: Tensor | None = None

    def preprocess(self, path: str, shape: Any, device: Any) -> Any:
        """ReX's `Data` for the picture at `path`."""
        x = images.to_input(images.open_image(path), self._preprocess)
        if tuple(x.shape[1:]) != tuple(shape[1:]):
            raise ImageError(
                f"{path} is preprocessed to shape {tuple(x.shape)}, but the script has {shape}",
                hint="pass the size that the preprocessing crops to",
            )
        if bool((x <= PAINT).any()):
            raise ImageError(
                f"{path} has preprocessed values of {PAINT} or less, which mark hidden pixels",
                hint="normalise pictures to a smaller range",
            )
        self.network.to(device)
        self.image = x.to(device)
        shown = Image.fromarray(images.displayable(x, self._preprocess))
        return _data(shown, self.image, shape, device)

    def predict(self, mutants: Tensor, target: Any = None, raw: bool = False) -> Any:
        """ReX's predictions for painted mutants (N, 3, H, W); probabilities if `raw`."""
        logits = self.logits(mutants)
        score = score_of_model(self.network, mutants, logits, None)
        if raw:
            return score.of_all(logits)
        if score.independent:
            raise ModelError(
                "ReX explains one of several classes, and this network answers labels that are "
                "independent of each other",
                hint="use convad_fx.explain, or a network that returns one label's logit",
            )
        if score.name != "softmax":  # ReX takes the softmax, which undoes the logarithm
            logits = score.of_all(logits).log()
        predictions = _from_rex("responsibility.prediction", "from_pytorch_tensor")
        return predictions(logits, target=target)

    def logits(self, mutants: Tensor) -> Tensor:
        """Logits (N, classes) of painted mutants, with painted pixels switched off."""
        hidden = (mutants == PAINT).all(1, keepdim=True)
        x = torch.where(hidden, self._hidden_values(mutants, hidden), mutants)
        with torch.inference_mode():
            return check_answers(self.network(x, ~hidden), len(x))

    def _hidden_values(self, mutants: Tensor, hidden: Tensor) -> Tensor:
        """Values of hidden pixels, which only networks with raw input read."""
        if self.network.policy.input != "raw" or not bool(hidden.any()):
            return torch.zeros((), dtype=mutants.dtype, device=mutants.device)
        if self.image is None or not bool((hidden | (mutants == self.image)).all()):
            raise ImageError(
                "ReX hides pixels of another picture than the last one it loaded",
                hint='use a policy with input="gate", which does not read hidden pixels',
            )
        return self.image


def _data(shown: Image.Image, x: Tensor, shape: Any, device: Any) -> Any:
    """ReX's `Data` with `PAINT` as its mask value."""
    data_class = _from_rex("input.input_data", "Data")

    class SwitchedOff(data_class):  # type: ignore[misc, valid-type]
        @property
        def mask_value(self) -> float:
            return PAINT

        @mask_value.setter
        def mask_value(self, value: Any) -> None:
            """Ignore the value of rex.toml."""

        def set_mask_value(self, m: Any) -> None:
            """Ignore the value of rex.toml."""

    data = SwitchedOff(shown, shape, device)
    data.data, data.transposed = x, True
    return data


def _from_rex(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"rex_xai.{module}"), name)
    except ImportError as error:
        raise Unavailable(
            "rex-xai is not installed",
            hint="it requires numpy 1.26, so install it in a separate environment: docs/rex.md",
        ) from error


def where() -> Path:
    """The path of rex_script.py."""
    return Path(__file__).with_name("rex_script.py")


if __name__ == "__main__":
    print(where())  # noqa: T201


__all__ = ["PAINT", "Script", "script", "where"]
