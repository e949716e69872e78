"""The open zoo: a small network of every convolutional family of timm, and some that are not.

Random weights, nothing is downloaded. Marked heavy: `pytest -m heavy tests/compiler/test_timm.py`.
What is found is kept in golden/timm.txt, one line a network; ``--refresh`` writes it anew, and with
it the table of docs/networks.md.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import convad_fx
from convad_fx.compiler.kernels.gating import gate

GOLDEN = Path(__file__).parents[1] / "golden" / "timm.txt"
PAGE = Path(__file__).parents[2] / "docs" / "networks.md"

#: family -> its small networks. All of these are convolutional and must be accepted.
CONVOLUTIONAL = {
    "convmixer": "convmixer_1024_20_ks9_p14",
    "convnext": "convnext_atto convnextv2_atto",
    "cspnet": "cspresnet50 cs3darknet_focus_s",
    "cspnext": "cspnext_tiny",
    "darknet": "darknet17",
    "densenet": "densenet121",
    "dla": "dla46_c dla60_res2net",
    "dpn": "dpn48b",
    "efficientnet": "efficientnet_b0 tf_efficientnet_b0 efficientnet_lite0 mnasnet_small",
    "fasternet": "fasternet_t0",
    "focalnet": "focalnet_tiny_srf",
    "gernet": "gernet_s",
    "ghostnet": "ghostnet_050 ghostnetv2_100",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "inception": "inception_v3 inception_v4 inception_resnet_v2",
    "inception-next": "inception_next_atto",
    "lcnet": "lcnet_035 lcnetv2_small",
    "mambaout": "mambaout_femto",
    "mixnet": "mixnet_s tf_mixnet_s",
    "mobilenetv3": "mobilenetv3_small_050 tf_mobilenetv3_small_minimal_100 fbnetc_100",
    "mobilenetv4": "mobilenetv4_conv_small_035",
    "mobileone": "mobileone_s0",
    "nasnet": "nasnetalarge",
    "nfnet": "dm_nfnet_f0 nf_regnet_b0 nf_resnet26",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetx_002 regnety_002 regnetz_005",
    "repghost": "repghostnet_050",
    "repvgg": "repvgg_a0",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_48w_2s",
    "resnest": "resnest14d",
    "resnet": "resnet10t resnet18 resnext26ts seresnet33ts resnetblur18 resnetaa34d",
    "resnetv2": "resnetv2_18 resnetv2_50x1_bit",
    "rexnet": "rexnet_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18 legacy_senet154",
    "sknet": "skresnet18",
    "starnet": "starnet_s050",
    "tresnet": "tresnet_m",
    "vgg": "vgg11",
    "vovnet": "ese_vovnet19b_slim_dw",
    "xception": "legacy_xception xception41",
}
#: Networks that let positions read each other by computed weights somewhere: findings, and rightly.
ATTENTION = {
    "coatnet": "coatnet_nano_rw_224",
    "edgenext": "edgenext_small",
    "efficientformer": "efficientformer_l1",
    "levit": "levit_128s",
    "mobilevit": "mobilevit_xxs",
    "mobilenetv4 hybrid": "mobilenetv4_hybrid_medium",
    "poolformer's kin": "caformer_s18",
    "swin": "swin_tiny_patch4_window7_224",
    "vision transformer": "vit_tiny_patch16_224",
}


def names(families: dict[str, str]) -> list[str]:
    return [name for text in families.values() for name in text.split()]


def row(name: str) -> str:
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecations
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
    settings = model.default_cfg
    size = settings["input_size"][-1]
    size = size if settings.get("fixed_input_size") else min(size, 128)
    x = torch.rand(1, 3, size, size)
    report = convad_fx.check(model, x)
    if not report.ok:
        first = report.findings[0]
        return f"{len(report.findings)} findings, first {first.path} ({first.op}): {first.why}"
    masked = convad_fx.convert(model, x)
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., : size // 2] = True
    with torch.inference_mode():
        equal = torch.equal(masked(x, ~torch.zeros_like(mask)), model(x))
        hidden = torch.where(mask, x, torch.nan)
        assert torch.equal(masked(hidden, mask), masked(x, mask)), "hidden values matter"
    assert equal, f"{name} differs on the whole image"
    assert masked.state_dict().keys() == model.state_dict().keys()
    gates = sum(node.target is gate for node in masked.graph.nodes)
    size_note = ", for one image size" if report.size_bound else ""
    front_end = "" if "symbolic" in report.front_end else f", by {report.front_end}"
    return f"accepted, bit-equal, {gates} gates{size_note}{front_end}"


@pytest.mark.heavy
@pytest.mark.parametrize("name", names(CONVOLUTIONAL) + names(ATTENTION))
def test_timm(name: str, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("timm", reason="needs timm: pip install 'convad_fx[timm]'")
    found = row(name)
    table = read()
    if request.config.getoption("--refresh"):
        table[name] = found
        GOLDEN.write_text("".join(f"{key}: {table[key]}\n" for key in sorted(table)))
    assert found == table.get(name), "run with --refresh and read the diff"
    assert found.startswith("accepted") == (name in names(CONVOLUTIONAL))


def read() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in GOLDEN.read_text().splitlines())


def page() -> str:
    """The table of docs/networks.md, from the two golden files."""
    torchvision = dict(
        line.split(": ", 1) for line in (GOLDEN.parent / "torchvision.txt").read_text().splitlines()
    )
    accepted = [name for name, found in torchvision.items() if found.startswith("accepted")]
    lines = [
        "# Networks tried",
        "",
        "Random weights; each is checked, converted, and compared bit for bit with the model on a"
        " whole image. Made by",
        '`pytest -m "heavy or not heavy" tests/compiler/test_zoo.py tests/compiler/test_timm.py'
        " --refresh`.",
        "",
        f"**torchvision**: {len(accepted)} of {len(torchvision)} classifiers accepted and"
        f" bit-equal; the other {len(torchvision) - len(accepted)} are transformers:",
        "",
        "| network | result |",
        "|---|---|",
        *(f"| {name} | {found} |" for name, found in torchvision.items()),
        "",
        "**timm**, by family:",
        "",
        "| family | network | result |",
        "|---|---|---|",
    ]
    table = read()
    for family, text in (CONVOLUTIONAL | ATTENTION).items():
        lines += [f"| {family} | {name} | {table.get(name, 'not run')} |" for name in text.split()]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_was_found(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--refresh"):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run with --refresh"
