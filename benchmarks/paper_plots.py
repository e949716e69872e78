"""The plots of `benchmarks.paper`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.paper_tables import Row, grouped, means


def plot_robustness(rows: list[Row]) -> Any:
    """For each network: size against rho, and rho at equal size; bars are the intervals.

    The latter over the photos on which every masker ranked something.
    """
    networks = list(grouped(rows, "model"))
    figure = new_figure(9, 3.8 * len(networks))
    for panels, ((name,), group) in zip(
        figure.subplots(len(networks), 2, squeeze=False), networks, strict=True
    ):
        n = len({r["photo"] for r in group})
        unranked = {r["photo"] for r in group if any(map(math.isnan, r["at_size"].values()))}
        for i, ((label,), own) in enumerate(grouped(group, "masker")):
            style: dict[str, Any] = {
                "color": f"C{i}",
                "label": label,
                "marker": "os^vDPX<>*"[i % 10],
            }
            size, rho = means(own, "size"), means(own, "rho.photos")
            panels[0].errorbar(
                size[0], rho[0], xerr=size[1], yerr=rho[1], alpha=0.8, linewidth=0.8, **style
            )
            shares = [float(s) for s in own[0]["at_size"]]
            both = [row for row in own if row["photo"] not in unranked]
            middle = [means(both, f"at_size.{s:g}")[0] for s in shares]
            panels[1].plot(shares, middle, linewidth=1, markersize=4, **style)
        panels[0].set(title=f"{name}, {n} photos", xlabel="size of the set")
        same = f"at equal size, the {n - len(unranked)} photos that all rank"
        panels[1].set(title=same, xlabel="share of the pixels, by responsibility")
        for panel in panels:
            panel.set(xlim=(0, 1), ylim=(0, 1), ylabel="rho on other photos")
            panel.grid(alpha=0.3)
        panels[1].legend(fontsize=7)
    return figure


def plot_threshold(rows: list[Row]) -> Any:
    """For each network: tau against size, rho and IoU, a line for each policy."""
    networks = list(grouped(rows, "model"))
    figure = new_figure(12, 3.8 * len(networks))
    for panels, ((name,), group) in zip(
        figure.subplots(len(networks), 3, squeeze=False), networks, strict=True
    ):
        lines: dict[str, list[tuple[float, list[Row]]]] = {}
        for (label,), own in grouped(group, "masker"):
            policy, _, tau = label.removeprefix("the paper's: ").partition(", tau ")
            lines.setdefault(policy, []).append((float(tau), own))
        n = len({r["photo"] for r in group})
        keys = {"size": "size", "rho.photos": "rho on other photos", "iou": "IoU with the object"}
        for panel, (key, title) in zip(panels, keys.items(), strict=True):
            for i, (label, found) in enumerate(lines.items()):
                found.sort(key=lambda pair: pair[0])
                values = [means(own, key) for _, own in found]
                panel.errorbar(
                    [tau + 0.004 * i for tau, _ in found],
                    [middle for middle, _ in values],
                    yerr=np.hstack([around for _, around in values]),
                    label=label,
                    color=f"C{i % 10}",
                    marker="o" if i < 10 else "s",
                    markersize=3,
                    linewidth=1,
                    elinewidth=0.5,
                )
            panel.set(title=f"{name}, {n} photos", xlabel="tau", ylabel=title, ylim=(0, 1))
            panel.grid(alpha=0.3)
        panels[-1].legend(fontsize=6)
    return figure


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


PLOTS = {"robustness": plot_robustness, "threshold": plot_threshold}
