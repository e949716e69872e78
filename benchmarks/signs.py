"""How much hiding a little of a photo costs under each policy: over-deactivation, and bias.

    python -m benchmarks.signs --kit DIR [--models NAME ...] [--photos 20] [--json FILE]

A tenth of what lies outside the middle ninth of a photo is hidden, in blocks of --sides pixels,
eight times: by switching off under each policy, and by grey paint in the plain network, for
comparison. "spared" is the mean confidence that is left, as a share of that in the whole photo;
"empty", the most that is left of any photo with nothing kept. No search takes part, and nothing is
timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import convad_fx
from benchmarks import measure
from benchmarks.kit import Kit
from convad_fx import Policy, metrics
from convad_fx.explain.masker import Masker

MODELS = ("mobilenet_v2", "mobilenet_v1_075_192")
POLICIES = {
    "default": Policy(),
    "tau 0.7": Policy(tau=0.7),
    "strict": Policy(input="strict"),
    "receptive": Policy(attribution="receptive"),
    "receptive, tau 0.5": Policy(attribution="receptive", tau=0.5),
    "receptive, tau 0.7": Policy(attribution="receptive", tau=0.7),
}


def rows_of(asked: argparse.Namespace) -> list[measure.Row]:
    rows = []
    kit = Kit(asked.kit)
    for name in asked.models:
        model, info = kit.load(name)
        photos = [kit.photo(file, info) for file in kit.files()[: asked.photos]]
        height, width = photos[0].shape[2:]
        middle = np.zeros((height, width), bool)
        middle[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = True
        with torch.inference_mode():
            answers = [int(model(photo).argmax()) for photo in photos]
        maskers: dict[str, Masker] = {
            policy: convad_fx.convert(model.eval(), photos[0], fields)
            for policy, fields in POLICIES.items()
        }
        maskers["grey paint"] = convad_fx.occlusion(
            model, "grey", mean=info["mean"], std=info["std"]
        )
        for masker_name, masker in maskers.items():
            for side in asked.sides:
                found = [
                    metrics.signs(masker, photo, middle, answer, side=side)
                    for photo, answer in zip(photos, answers, strict=True)
                ]
                spared = metrics.bootstrap([one.spared for one in found])
                rows.append(
                    {
                        "model": name,
                        "hidden by": masker_name,
                        "blocks": side,
                        "photos": len(photos),
                        "spared": spared.value,
                        "95 %": f"{spared.low:.2f}..{spared.high:.2f}",
                        "below 0.7": sum(one.spared < 0.7 for one in found),
                        "empty": max(one.empty for one in found),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kit", type=Path, required=True, help="folder of weights and photos")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--sides", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    asked = parser.parse_args()
    measure.show(rows_of(asked), asked.json)


if __name__ == "__main__":
    main()
