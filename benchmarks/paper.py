"""The paper's three experiments (arXiv 2510.01038, section 5), on the kit's networks.

    python -m benchmarks.paper --experiment equivalence --kit ../shared/kit --json OUT
    python -m benchmarks.paper --experiment robustness --kit ../shared/kit --photos 10 --json OUT
    python -m benchmarks.paper --experiment threshold --kit ../shared/kit --photos 10 --json OUT

*equivalence*: photos through the plain and the converted network, everything kept: the same bits,
the same decisions?

*robustness*: the same search, budget and seed, by switching off, by layer masking and by each
paint. The sets found are planted on solid colours and on other photos and shown to the plain
network: rho is the share on which it still gives the class. Larger sets are robust for free, so the
first pixels of each ranking are planted, too, as many for every masker. A search that learnt
nothing, since no part it tried passed or the empty image did, ranks nothing: such sets are counted
("without a map"; "empty"), and are not planted at equal size. And no search at all: random masks,
the same for every masker; of those it calls sufficient, how many survive?

*threshold*: what tau and the rest of the policy do to sets and maps, against the true masks of
objects.

Beside the kit's networks, `--models torchvision:NAME` takes one of torchvision's with its published
weights, where these are at hand or can be fetched; where not, a line says that it was skipped.

`--device cuda` runs them on a GPU, in float32 proper (no TF32) and in larger batches; `--workers`
does several photos at once, each in a process of its own.

A run is written after every photo; photos are called by their numbers. `--resume` goes on with the
file that an interrupted one left (or adds photos and networks to it); `--plot PNG` draws the second
and the third experiment; `--tables FILE` prints the tables of an earlier run, and of several runs
of the second with other seeds (`--seed`) what the seed changes, of two with other partitions what
a longer search changes.

Everything is paired by photo; intervals are 95 % bootstrap intervals over photos.
docs/experiments.md has the tables, and the commands that made them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import convad_fx
from benchmarks.kit import Kit
from benchmarks.paper_plots import PLOTS
from benchmarks.paper_tables import (
    ROBUST,
    Row,
    describe,
    print_equivalence,
    print_longer,
    print_robustness,
    print_seeds,
    print_threshold,
)
from convad_fx import images, models
from convad_fx.cli.masks import read_mask
from convad_fx.compiler.policy import Policy
from convad_fx.errors import ModelError, Unavailable
from convad_fx.explain import Explanation, Search, explain, occlusion
from convad_fx.explain.masker import Masker
from convad_fx.explain.paint import Normalisation
from convad_fx.explain.ranking import pixel_ranks
from convad_fx.images import Preprocess
from convad_fx.metrics import agreement, localisation, robustness

TORCHVISION = "torchvision:"
MODELS = ("mobilenet_v2", "mobilenet_v1_075_192", "cifar_resnet20", "cifar_resnet56")
#: Paints that differ from each other on every network here.
PAINTS = ("grey", "black", "white", "image-mean", "blur", "noise", "inpaint")
SIZES = (0.2, 0.4, 0.6, 0.8)
TAUS = (0.0, 0.1, 0.3, 0.5, 0.7)
GAMMA = 0.9

Save = Callable[[list[Row]], None]


class Remembering:
    """A network that is asked about each image once: the compositions are every masker's."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.known: dict[bytes, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        content = x.contiguous().numpy()
        keys = [blake2b(image.tobytes(), digest_size=16).digest() for image in content]
        fresh = [i for i, key in enumerate(keys) if key not in self.known]
        if fresh:
            for i, logits in zip(fresh, self.model(x[fresh]), strict=True):
                self.known[keys[i]] = logits.clone()
        return torch.stack([self.known[key] for key in keys])


def photo_name(number: int) -> str:
    """What a photo is called in rows: its number among the files, by name."""
    return f"{number:02d}"


@dataclass(frozen=True)
class Network:
    """One of the kit's or of torchvision's, with the kit's photos as it reads them."""

    name: str
    model: Any
    info: dict[str, Any]
    files: list[Path]
    photos: list[Tensor]
    preprocess: Preprocess | None  # None: as the kit does

    @classmethod
    def load(cls, kit: Kit, name: str, device: str) -> Network:
        loaded = cls._load(kit, name)
        loaded.model.to(device)
        photos = [loaded.photo(kit, file).to(device) for file in loaded.files]
        return replace(loaded, photos=photos)

    @classmethod
    def _load(cls, kit: Kit, name: str) -> Network:
        if name.startswith(TORCHVISION):
            classifier = models.resolve(name.removeprefix(TORCHVISION))
            steps = classifier.preprocess
            info = {"mean": steps.mean, "std": steps.std, "size": classifier.size[0]}
            return cls(name, classifier.model, info, kit.files(), [], steps)
        model, info = kit.load(name)
        return cls(name, model, info, kit.files(), [], None)

    @classmethod
    def load_all(cls, kit: Kit, names: Sequence[str], device: str) -> Iterator[Network]:
        """Those whose weights are to be had."""
        for name in names:
            try:
                network = cls.load(kit, name, device)
            except Unavailable as error:
                print(f"skipped: {name}: {error}")
                continue
            except ModelError as error:
                sys.exit(f"{name}: {error}")
            yield network

    def photo(self, kit: Kit, file: Path) -> Tensor:
        """What it reads of a photo, (1, 3, H, W)."""
        if self.preprocess is None:
            return kit.photo(file, self.info)
        return images.to_input(images.open_image(file), self.preprocess)

    def truth(self, kit: Kit, mask: Path, photo: Path) -> Any:
        """Where the object is in what it reads of a photo, (H, W); None if the crop leaves none."""
        if self.preprocess is None:
            cropped = kit._models.crop_mask(Image.open(mask), self.info).numpy()
            return cropped if cropped.any() else None
        return read_mask(mask, images.open_image(photo), self.preprocess)

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(tuple(self.info["mean"]), tuple(self.info["std"]))

    def switched_off(self, policy: Policy) -> Masker:
        return convad_fx.convert(self.model, self.photos[0], policy)

    def others(self, number: int) -> list[Tensor]:
        return self.photos[:number] + self.photos[number + 1 :]

    def spread(self, photos: int) -> list[int]:
        """Every fifth first, then those after them: more photos are the same and some more."""
        return sorted(range(len(self.photos)), key=lambda i: (i % 5, i))[:photos]


@dataclass(frozen=True)
class Planting:
    """How many backgrounds of each kind."""

    colours: int
    others: int
    batch: int

    def rho(
        self, network: Network, model: Any, x: Tensor, others: Sequence[Tensor], mask: Any, c: int
    ) -> dict[str, float]:
        options: dict[str, Any] = {
            "batch_size": self.batch,
            "normalisation": network.normalisation,
        }
        by_colour = robustness(model, x, mask, c, n=self.colours, **options)
        return {"colours": by_colour.rho, "photos": self.on_photos(model, x, others, mask, c)}

    def on_photos(
        self, model: Any, x: Tensor, others: Sequence[Tensor], mask: Any, c: int
    ) -> float:
        n = min(self.others, len(others))
        found = robustness(model, x, mask, c, "images", n=n, others=others, batch_size=self.batch)
        return found.rho


# ----------------------------------------------------------------------------------- photo by photo
class Study:
    """What is measured of one network, photo by photo."""

    def __init__(self, kit: Kit, network: Network, asked: argparse.Namespace) -> None:
        self.kit, self.network, self.asked = kit, network, asked
        self.planting = Planting(asked.colours, asked.others, asked.batch)
        if asked.device == "cpu":
            network.model.to(memory_format=torch.channels_last)

    @property
    def numbers(self) -> list[int]:
        """The photos asked for."""
        raise NotImplementedError

    def rows(self, number: int) -> list[Row]:
        """What is found on one of them."""
        raise NotImplementedError

    @classmethod
    def run(cls, kit: Kit, asked: argparse.Namespace, save: Save) -> list[Row]:
        """The rows known so far, and those of every other photo of every network."""
        rows: list[Row] = list(asked.known)
        done = {(row["model"], row["photo"]) for row in rows}
        networks = Network.load_all(kit, asked.models, asked.device)
        studies = {network.name: cls(kit, network, asked) for network in networks}
        todo = [
            (name, number)
            for name, study in studies.items()
            for number in study.numbers
            if (name, photo_name(number)) not in done
        ]
        with contextlib.ExitStack() as stack:
            measured: Iterable[tuple[list[Row], float]]
            if asked.workers == 1:
                measured = (_timed(studies[name], number) for name, number in todo)
            else:
                own = argparse.Namespace(**vars(asked) | {"known": [], "models": list(studies)})
                pool = ProcessPoolExecutor(
                    asked.workers,
                    multiprocessing.get_context("spawn"),
                    _start,
                    (cls, kit.root, own),
                )
                measured = stack.enter_context(pool).map(_measured, todo)
            for (name, number), (found, seconds) in zip(todo, measured, strict=True):
                rows += found
                print(f"{name} {photo_name(number)}: {seconds:.0f} s", flush=True)
                save(rows)
        return rows


#: Studies of a process that does nothing else, by the names of their networks.
_own: dict[str, Study] = {}


def _start(study: type[Study], root: Path, asked: argparse.Namespace) -> None:
    """In a process that measures: load what it measures."""
    prepare(asked)
    kit = Kit(root)
    networks = Network.load_all(kit, asked.models, asked.device)
    _own.update({network.name: study(kit, network, asked) for network in networks})


def _measured(task: tuple[str, int]) -> tuple[list[Row], float]:
    """The rows of a photo, and the seconds they took."""
    name, number = task
    return _timed(_own[name], number)


def _timed(study: Study, number: int) -> tuple[list[Row], float]:
    began = time.perf_counter()
    rows = study.rows(number)
    return rows, time.perf_counter() - began


def prepare(asked: argparse.Namespace) -> None:
    """Settings of a process that measures."""
    torch.set_num_threads(asked.threads)
    if asked.device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # float32 as on a CPU
    convad_fx.keep_memory()


# ------------------------------------------------------------------------------------- equivalence
def equivalence(kit: Kit, asked: argparse.Namespace, save: Save) -> list[Row]:
    rows: list[Row] = list(asked.known)
    done = {(r["model"], repr(r["policy"]), r["photo"]) for r in rows}
    for network in Network.load_all(kit, asked.models, asked.device):
        name = network.name
        for policy in (Policy(), Policy.paper(), Policy(tau=0.5), Policy(pool="renormalize")):
            masked = convad_fx.convert(network.model, network.photos[0], policy)
            for number in network.spread(asked.photos):
                if (name, repr(policy.to_dict()), photo_name(number)) in done:
                    continue
                x = network.photos[number]
                ones = torch.ones(1, 1, *x.shape[2:], dtype=torch.bool, device=x.device)
                with torch.inference_mode():
                    plain, kept = network.model(x), masked(x, ones)
                row = {
                    "model": name,
                    "policy": policy.to_dict(),
                    "photo": photo_name(number),
                }
                row["bit_equal"] = torch.equal(plain, kept)
                row["changed"] = int(plain.argmax()) != int(kept.argmax())
                row["difference"] = float((plain - kept).abs().max())
                rows.append(row)
                save(rows)
    return rows


# -------------------------------------------------------------------------------------- robustness
OFF = {
    "switched off": Policy(),
    "switched off, as the paper": Policy.paper(),
    "layer masking": Policy.layer_masking(),
}


def maskers(network: Network, names: Sequence[str]) -> dict[str, Masker]:
    info = network.info
    off: dict[str, Masker] = {name: network.switched_off(policy) for name, policy in OFF.items()}
    paints = {n: occlusion(network.model, n, mean=info["mean"], std=info["std"]) for n in names}
    return {**off, **paints}


def explained(why: Explanation) -> Row:
    return {
        "target": why.target,
        "size": why.size,
        "learnt": bool(why.responsibility.any()),
        "relative": why.confidence_recheck / why.confidence_whole,
        "over_threshold": why.confidence_recheck - why.gamma * why.confidence_whole,
        "sufficient": why.sufficient,
        "evaluations": why.evaluations,
    }


class Robustness(Study):
    """Explanations by every masker, and what becomes of their sets in the plain network."""

    @property
    def numbers(self) -> list[int]:
        return self.network.spread(self.asked.photos)

    @cached_property
    def maskers(self) -> dict[str, Masker]:
        return maskers(self.network, self.asked.paints)

    def rows(self, number: int) -> list[Row]:
        network, asked, rows = self.network, self.asked, []
        x, others = network.photos[number], network.others(number)
        # on a GPU, to remember costs more than to ask again
        plain = Remembering(network.model) if asked.device == "cpu" else network.model
        for label, masker in self.maskers.items():
            why = asked.explained(masker, x)
            row = {"model": network.name, "photo": photo_name(number), "masker": label}
            row |= explained(why)
            row["rho"] = self.planting.rho(network, plain, x, others, why.mask, why.target)
            row["robust"] = {kind: rho >= ROBUST for kind, rho in row["rho"].items()}
            ranks = pixel_ranks(why.responsibility)
            row["at_size"] = {
                f"{share:g}": self.planting.on_photos(
                    plain, x, others, ranks < share * ranks.size, why.target
                )
                if row["learnt"]
                else math.nan
                for share in asked.sizes
            }
            row["random"] = on_random_masks(masker, plain, x, others, why.target, asked.batch)
            rows.append(row)
        return rows


def on_random_masks(
    masker: Masker, plain: Any, x: Tensor, others: Sequence[Tensor], target: int, batch: int
) -> Row:
    """The masker's verdict on masks that no search made."""
    n = min(10, len(others))
    found = agreement(
        masker, plain, x, target, gamma=GAMMA, on="images", n=n, others=others, batch_size=batch
    )
    return {
        "confidence": found.confidence.tolist(),
        "sufficient": found.sufficient.tolist(),
        "rho": found.rho.tolist(),
    }


# --------------------------------------------------------------------------------------- threshold
def policies(grid: str) -> dict[str, Policy]:
    """Every combination, or tau by attribution and the rest one at a time."""
    fields = [
        (tau, attribution, read, pool)
        for attribution in ("positional", "receptive")
        for read in ("gate", "raw", "strict")
        for pool in ("dilute", "renormalize")
        for tau in TAUS
    ]
    if grid == "few":
        fields = [
            (tau, attribution, read, pool)
            for tau, attribution, read, pool in fields
            if (read, pool) == ("gate", "dilute")
            or (read == "gate" and attribution == "positional" and tau in (0.0, 0.5))
            or (pool == "dilute" and attribution == "positional" and tau in (0.0, 0.5))
            or Policy(tau, attribution, read, pool) == Policy.paper()
        ]
    return {describe(p.to_dict()): p for p in (Policy(*f) for f in fields)}


def described_objects(kit: Kit, network: Network) -> Iterator[tuple[int, tuple[Tensor, Any]]]:
    """Photos with one object each that the network answers rightly, and the object's mask."""
    folder = kit.root / "images" / "segmentation"
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file)):
            photo, mask = folder / line["image"], folder / line["mask"]
            x = network.photo(kit, photo).to(network.photos[0].device)
            truth = network.truth(kit, mask, photo)
            with torch.inference_mode():
                top = str(int(network.model(x).argmax()))
            if top in line["imagenet_indices"].split() and truth is not None:
                yield number, (x, truth)


class Threshold(Study):
    """Explanations under every policy, against the masks of objects."""

    @cached_property
    def objects(self) -> dict[int, tuple[Tensor, Any]]:
        network = self.network
        if network.info["size"] == 32 and network.preprocess is None:
            print(
                f"skipped: {network.name}: the objects' classes are ImageNet's, its own CIFAR-10's"
            )
            return {}
        return dict(described_objects(self.kit, network))

    @property
    def numbers(self) -> list[int]:
        return list(self.objects)[: self.asked.photos]

    @cached_property
    def maskers(self) -> dict[str, Masker]:
        chosen = policies(self.asked.grid)
        return {label: self.network.switched_off(policy) for label, policy in chosen.items()}

    def rows(self, number: int) -> list[Row]:
        network, rows = self.network, []
        x, truth = self.objects[number]
        for label, masker in self.maskers.items():
            why = self.asked.explained(masker, x)
            row = {"model": network.name, "photo": photo_name(number), "masker": label}
            row |= explained(why)
            where = localisation(why.mask, truth, why.responsibility)
            row |= {
                "iou": where.iou,
                "precision": where.precision,
                "energy": where.energy,
                "hit": where.hit,
                "object": where.object,
            }
            row["rho"] = self.planting.rho(
                network, network.model, x, network.photos, why.mask, why.target
            )
            rows.append(row)
        return rows


EXPERIMENTS = {
    "equivalence": (equivalence, print_equivalence),
    "robustness": (Robustness.run, print_robustness),
    "threshold": (Threshold.run, print_threshold),
}


#: What options are unless given.
USUAL: dict[str, Any] = {
    "models": list(MODELS),
    "photos": 50,
    "threads": 1,
    "workers": 1,
    "device": "cpu",
}
#: Those that only some experiments have.
DEFAULTS: dict[str, Any] = {
    "colours": 100,
    "others": 50,
    "partitions": Search().partitions,
    "seed": 0,
    "sizes": list(SIZES),
    "paints": list(PAINTS),
    "grid": "few",
}
USED = {
    "equivalence": (),
    "robustness": ("colours", "others", "partitions", "seed", "sizes", "paints"),
    "threshold": ("colours", "others", "partitions", "seed", "grid"),
}

NOT_SAVED = ("kit", "json", "tables", "explained", "resume", "plot", "device", "workers")
#: What rows of one file have in common; networks and photos may be added.
SAME = (
    "torch",
    "machine",
    "experiment",
    "colours",
    "others",
    "partitions",
    "seed",
    "sizes",
    "paints",
    "grid",
    "maskers",
)


def known(path: Path, about: dict[str, Any]) -> list[Row]:
    """Rows of an earlier run of the same experiment; none if there is no such file."""
    if not path.exists():
        return []
    try:
        earlier = json.loads(path.read_text())
        other = [key for key in SAME if earlier["about"].get(key) != about[key]]
        rows: list[Row] = earlier["rows"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{path} is no run of this script ({error}); name another --json"
        ) from None
    if other:
        differ = ", ".join(f"{k} {earlier['about'].get(k)!r}, now {about[k]!r}" for k in other)
        raise SystemExit(f"{path} was made otherwise ({differ}); name another --json")
    return rows


#: What is no choice of the experiment's: rows differ by rounding, and sizes may be more or fewer.
CIRCUMSTANCES = ("torch", "machine", "sizes")


def print_compared(runs: list[tuple[dict[str, Any], list[Row]]]) -> None:
    """Runs of other seeds, or two of another number of partitions, and alike otherwise."""
    abouts, rows = zip(*runs, strict=True)
    other = {k for k in SAME if len({repr(about.get(k)) for about in abouts}) > 1}
    longer = "partitions" in other and len(runs) == 2
    unlike = other - {"partitions", *CIRCUMSTANCES} if longer else other - {"seed"}
    if unlike:
        raise SystemExit(
            f"these runs differ in {', '.join(sorted(unlike))}: name runs with other seeds only, "
            "or two with other partitions only"
        )
    if longer:
        if also := sorted(other - {"partitions"}):
            print(f"These runs differ in {', '.join(also)}, too.")
        print_longer(list(rows), [about["partitions"] for about in abouts])
        return
    if len({repr(about.get("seed")) for about in abouts}) < len(abouts):
        raise SystemExit("two of these runs have the same seed")
    print_seeds(list(rows))


def check(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> None:
    """Options that do nothing are refused; those that are not given get their usual values."""
    given = [option for option in (*USUAL, *DEFAULTS) if getattr(asked, option) is not None]
    if asked.tables is not None:
        if given or asked.json is not None or asked.resume:
            parser.error("--tables runs nothing: of the other options only --plot goes with it")
        if len(asked.tables) > 1 and (asked.experiment != "robustness" or asked.plot is not None):
            parser.error(
                "several --tables are compared in the experiment robustness, without --plot"
            )
    elif asked.kit is None:
        parser.error("--kit is needed, the folder of real weights and photos")
    if asked.workers is not None and (asked.experiment == "equivalence" or asked.workers < 1):
        parser.error("--workers, 1 or more, are of the experiments robustness and threshold")
    for option in DEFAULTS:
        if option in given and option not in USED[asked.experiment]:
            parser.error(f"--{option} does nothing in the experiment {asked.experiment}")
    for option, usual in (USUAL | DEFAULTS).items():
        if option not in given:
            setattr(asked, option, usual)
    for name in asked.models:
        if name not in MODELS and not name.startswith(TORCHVISION):
            parser.error(f"--models: no {name}; choose from {', '.join(MODELS)}, {TORCHVISION}NAME")
    if asked.resume and asked.json is None:
        parser.error("--resume needs --json, the file to go on with")
    if asked.plot is not None and asked.experiment not in PLOTS:
        parser.error(f"--plot draws {' and '.join(PLOTS)}, not {asked.experiment}")


def tabled(path: Path, asked: str) -> tuple[dict[str, Any], list[Row]]:
    """What an earlier run of the same experiment was asked for, and its rows."""
    try:
        earlier = json.loads(path.read_text())
        about, rows = dict(earlier["about"]), list(earlier["rows"])
        experiment = about["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no run of this script ({error})") from None
    if experiment != asked:
        raise SystemExit(f"{path} is a run of --experiment {experiment}")
    return about, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", choices=EXPERIMENTS, required=True)
    parser.add_argument("--kit", type=Path, help="folder of real weights and photos")
    names = f"{', '.join(MODELS)}, {TORCHVISION}NAME"
    parser.add_argument("--models", nargs="+", metavar="NAME", help=names)
    parser.add_argument("--photos", type=int)
    parser.add_argument("--colours", type=int, help="solid backgrounds")
    parser.add_argument("--others", type=int, help="photos as backgrounds, at most")
    parser.add_argument("--partitions", type=int)
    parser.add_argument("--seed", type=int, help="of the searches")
    parser.add_argument("--sizes", nargs="+", type=float, help="equal sizes")
    parser.add_argument("--paints", nargs="*", help="none: only what switches off")
    parser.add_argument("--grid", choices=("few", "full"), help="of policies")
    parser.add_argument("--threads", type=int, help="of each process")
    parser.add_argument("--workers", type=int, help="processes, each with photos of its own")
    parser.add_argument("--device", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="written after every photo")
    parser.add_argument(
        "--tables",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="print the tables of this JSON, run nothing; of several, what their seeds change, or "
        "the partitions of two",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the file of --json")
    parser.add_argument("--plot", type=Path, help="draw the rows, measured or of --tables (PNG)")
    asked = parser.parse_args()
    check(parser, asked)
    if asked.tables is not None:
        runs = [tabled(path, asked.experiment) for path in asked.tables]
        if len(runs) > 1:
            print_compared(runs)
        else:
            finish(runs[0][1], asked)
        return
    run, _ = EXPERIMENTS[asked.experiment]
    prepare(asked)
    asked.batch = 32 if asked.device == "cpu" else 256
    asked.explained = partial(
        explain,
        gamma=GAMMA,
        search=Search(partitions=asked.partitions),
        seed=asked.seed,
        batch_size=asked.batch,
    )
    command = {k: v for k, v in vars(asked).items() if k not in NOT_SAVED}
    kind = platform.machine()
    if asked.device != "cpu":
        kind = torch.cuda.get_device_name(asked.device)
    about = {"torch": torch.__version__, "machine": kind, **command}
    about["maskers"] = [*OFF, *asked.paints] if asked.experiment == "robustness" else []
    asked.known = known(asked.json, about) if asked.resume else []

    def save(rows: list[Row]) -> None:
        if asked.json is not None:
            half = asked.json.with_name(asked.json.name + ".part")
            half.write_text(written(about, rows))
            half.replace(asked.json)  # an interruption leaves the earlier file whole

    finish(rounded(run(Kit(asked.kit), asked, save)), asked)


def written(about: dict[str, Any], rows: list[Row]) -> str:
    """JSON with a row to a line; numbers to five digits, of which the tables are made, too."""
    lines = ",\n".join(json.dumps(rounded(row)) for row in rows)
    return f'{{"about": {json.dumps(about)},\n"rows": [\n{lines}\n]}}\n'


def rounded(found: Any) -> Any:
    if isinstance(found, float):
        return float(f"{found:.5g}")
    if isinstance(found, dict):
        return {key: rounded(v) for key, v in found.items()}
    return [rounded(v) for v in found] if isinstance(found, list | tuple) else found


def finish(rows: list[Row], asked: argparse.Namespace) -> None:
    EXPERIMENTS[asked.experiment][1](rows)
    if asked.plot is not None:
        if not rows:
            raise SystemExit("no rows: nothing to plot")
        figure = PLOTS[asked.experiment](rows)
        figure.savefig(asked.plot, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
