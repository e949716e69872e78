"""The kit of real weights and photos, given by `--kit DIR`; nothing of it is in this repository."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn


class Kit:
    """A folder with `models.py` and `images/imagenet`.

    Ends the program with a line saying so where there is none: a benchmark that cannot run is
    skipped, visibly.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "models.py").is_file():
            sys.exit(f"skipped: no kit of weights and photos in {root}; give its folder with --kit")
        self.root = root.resolve()
        spec = importlib.util.spec_from_file_location("kit_models", self.root / "models.py")
        assert spec is not None
        assert spec.loader is not None
        self._models = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self._models  # torch.compile imports what it inlines by name
        spec.loader.exec_module(self._models)

    def __contains__(self, name: str) -> bool:
        return name in self._models.ZOO

    def load(self, name: str) -> tuple[nn.Module, dict[str, Any]]:
        model, info = self._models.load(name, self.root)
        return model, info

    def files(self) -> list[Path]:
        return sorted((self.root / "images" / "imagenet").glob("*.[jJ]*"))

    def photo(self, file: Path, info: dict[str, Any]) -> Tensor:
        picture = Image.open(file).convert("RGB")
        if info["size"] == 32:
            picture = picture.resize((32, 32))
        x: Tensor = self._models.preprocess(picture, info)
        return x
