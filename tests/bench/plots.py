# SPDX-License-Identifier: MIT
"""Plots of the results, one PNG each. Needs matplotlib."""
import math
import os
import statistics

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  the backend is chosen first

# The same colour for an allocator everywhere; colours that the colour-blind can tell apart (Okabe and Ito).
STYLE = {
    "shmalloc": ("#D55E00", "o"), "shmalloc linked": ("#E69F00", "s"), "glibc": ("#000000", "v"),
    "jemalloc": ("#0072B2", "^"), "mimalloc": ("#56B4E9", "<"), "tcmalloc": ("#009E73", ">"),
    "Boost": ("#CC79A7", "D"), "PMDK": ("#8B4513", "P"), "LMDB": ("#777777", "X"),
    "Ralloc": ("#999933", "h"), "Metall": ("#AA4466", "p"),
}


def save(figure, folder, name):
    path = os.path.join(folder, f"bench-{name}.png")
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    return path


def line(axes, name, xs, values):
    """Medians, with a bar from the lowest to the highest round."""
    colour, marker = STYLE[name]
    middles = [statistics.median(value) for value in values]
    below = [middle - min(value) for middle, value in zip(middles, values)]
    above = [max(value) - middle for middle, value in zip(middles, values)]
    ours = name.startswith("shmalloc")
    axes.errorbar(xs, middles, yerr=[below, above], label=name, color=colour, marker=marker, markersize=5,
                  linewidth=2.2 if ours else 1.2, capsize=2, zorder=3 if ours else 2)


def draw_growth(axes, xlabel, panel, ticks, grid="both"):
    """A panel is (heading, y label, {x: {allocator: values}}); both axes are logarithmic."""
    heading, ylabel, results = panel
    for allocator in STYLE:
        xs = [x for x, row in results.items() if allocator in row]
        if xs:
            line(axes, allocator, xs, [results[x][allocator] for x in xs])
    axes.set_xscale("log", base=2 if ticks else 10)
    axes.set_yscale("log")
    low, high = axes.get_ylim()  # whole decades, so that each panel has numbers at its axis
    axes.set_ylim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    if ticks:
        axes.set_xticks(list(ticks), labels=list(ticks.values()))
        axes.minorticks_off()
        axes.tick_params(axis="y", which="minor", left=True)
    axes.set_title(heading, fontsize=10)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, which=grid, linewidth=0.3)


def one_legend(figure, all_axes):
    known = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            known.setdefault(label, handle)
    figure.legend(known.values(), known.keys(), fontsize=8, ncol=len(known), loc="upper center",
                  bbox_to_anchor=(0.5, 0.0))


def growth(folder, name, title, xlabel, panels, ticks=None):
    """Panels side by side."""
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.6), squeeze=False)
    for axes, panel in zip(all_axes[0], panels):
        draw_growth(axes, xlabel, panel, ticks)
    one_legend(figure, all_axes[0])
    figure.suptitle(title)
    return save(figure, folder, name)


def overview(folder, columns):
    """One picture of how the cost grows, for the README: [(x label, [panel, ...], ticks)], a column for each."""
    height = max(len(panels) for _, panels, _ in columns)
    figure, all_axes = pyplot.subplots(height, len(columns), figsize=(3.9 * len(columns), 3.2 * height),
                                       squeeze=False)
    for column, (xlabel, panels, ticks) in zip(all_axes.T, columns):
        for axes, panel in zip(column, panels):
            draw_growth(axes, xlabel, panel, ticks, grid="major")
    one_legend(figure, all_axes.flat)
    return save(figure, folder, "growth")


def speed(folder, results):
    """A dot for each allocator in each row."""
    titles = list(results)[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.27 * len(titles)))
    for allocator, (colour, marker) in STYLE.items():
        points = [(statistics.median(results[title][allocator]), y) for y, title in enumerate(titles)
                  if allocator in results[title]]
        if points:
            axes.plot(*zip(*points), marker, color=colour, label=allocator, markersize=6,
                      zorder=3 if allocator.startswith("shmalloc") else 2)
    axes.set_xscale("log")
    axes.set_yticks(range(len(titles)), labels=titles, fontsize=8)
    axes.set_xlabel("ns for an allocation and its free, median; further left is faster")
    axes.grid(True, axis="both", which="major", linewidth=0.4)
    axes.set_ylim(-1, len(titles))
    axes.legend(fontsize=7, ncol=5, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return save(figure, folder, "speed")


def curves(folder, name, title, xlabel, ylabel, results, marks=()):
    """One line for each allocator: {allocator: [(x, y)]}; `marks` are (x, text) of what changes there."""
    figure, axes = pyplot.subplots(figsize=(8, 4.6))
    for allocator, points in results.items():
        colour, marker = STYLE[allocator]
        axes.plot(*zip(*points), color=colour, marker=marker, markersize=3, label=allocator,
                  linewidth=2.2 if allocator.startswith("shmalloc") else 1.2)
    for x, text in marks:
        axes.axvline(x, color="#bbbbbb", linewidth=0.6, zorder=0)
        axes.text(x, 0.99, " " + text, transform=axes.get_xaxis_transform(), fontsize=6.5, va="top")
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=8)
    return save(figure, folder, name)
