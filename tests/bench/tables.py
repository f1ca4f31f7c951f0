# SPDX-License-Identifier: MIT
"""Tables and figures in words: Markdown that is aligned for reading as plain text too."""
import math
import statistics

from peers import ALL, MALLOCS, OURS

MALLOC_NAMES = [allocator.name for allocator in MALLOCS]
OUR_NAMES = [allocator.name for allocator in OURS]


def table(header, rows):
    lines = [header] + rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def render(cells):
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "| " + " | ".join([first] + rest) + " |"
    rule = "| " + " | ".join(["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]) + " |"
    return "\n".join([render(header), rule] + [render(row) for row in rows])


def number(value):
    """Three digits that mean something."""
    if value >= 100000:
        return f"{value / 1000:,.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def ratio(value):
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    return f"{number(min(values))}..{number(max(values))}"


def median_spread(values):
    return f"{number(statistics.median(values))} ({spread(values)})"


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def names_in(results):
    """Allocators that any row of {title: {name: ...}} has, in the usual order."""
    return [allocator.name for allocator in ALL if any(allocator.name in row for row in results.values())]


def ratios(row, ours, peer):
    """Of each round: how many times as long as the peer's."""
    return [mine / theirs for mine, theirs in zip(row[ours], row[peer])]


def ratio_to_best(row, ours="shmalloc", peers=MALLOC_NAMES):
    """Of the medians: how many times as long as the fastest peer's."""
    best = min(statistics.median(row[peer]) for peer in peers if peer in row)
    return statistics.median(row[ours]) / best


def timed_table(title, results, peers, ours="shmalloc"):
    """Medians of the rounds, and the median ratio to each peer."""
    rows, columns = [], {peer: [] for peer in peers}
    shown = [name for name in names_in(results) if name in OUR_NAMES or name in peers]
    peers = [peer for peer in peers if peer in shown]
    for name, row in results.items():
        cells = [number(statistics.median(row[one])) if one in row else "-" for one in shown]
        for peer in peers:
            value = statistics.median(ratios(row, ours, peer)) if peer in row else None
            cells.append(ratio(value) if value else "-")
            if value:
                columns[peer].append(value)
        rows.append([name] + cells)
    means = [ratio(geometric_mean(columns[peer])) if columns[peer] else "-" for peer in peers]
    rows.append(["geometric mean"] + [""] * len(shown) + means)
    return table([title] + shown + ["/ " + peer for peer in peers], rows)


def spread_table(title, results):
    shown = names_in(results)
    return table([title] + shown,
                 [[name] + [spread(row[one]) if one in row else "-" for one in shown]
                  for name, row in results.items()])


def growth_table(title, results):
    """Medians by point: {point: {name: values}}."""
    shown = names_in(results)
    return table([title] + shown,
                 [[str(point)] + [median_spread(row[one]) if one in row else "-" for one in shown]
                  for point, row in results.items()])


MEAN_AIM = 0.95  # of the best malloc's, over all rows
ROW_AIM = 1.2  # of the best malloc's in the row


def aims(timed):
    """What the project wants of these rows: [(aim, measured, met)]."""
    complete = {title: row for title, row in timed.items() if all(name in row for name in MALLOC_NAMES)}
    out = []
    if complete:
        means = {peer: geometric_mean([statistics.median(ratios(row, "shmalloc", peer))
                                       for row in complete.values()]) for peer in MALLOC_NAMES}
        peer, mean = max(means.items(), key=lambda item: item[1])
        out.append((f"geometric mean of the {len(complete)} rows that all mallocs have, "
                    f"against the best of them: at most {MEAN_AIM}", f"{mean:.2f} of {peer}", mean <= MEAN_AIM))
        title, worst = max(((title, ratio_to_best(row)) for title, row in complete.items()),
                           key=lambda item: item[1])
        above = sum(ratio_to_best(row) > ROW_AIM for row in complete.values())
        out.append((f"every row at most {ROW_AIM} of the best malloc in that row",
                    f"{above} rows above; worst {worst:.2f}: {title}", worst <= ROW_AIM))
    # PMDK's calls are crash-atomic with their ref word, as the linked ones are.
    for peer, ours, aim in (("Boost", "shmalloc", 10), ("PMDK", "shmalloc linked", 10), ("Ralloc", "shmalloc", 1.5),
                            ("Metall", "shmalloc", 3)):
        factors = {title: 1 / statistics.median(ratios(row, ours, peer))
                   for title, row in timed.items() if peer in row}
        if factors:
            title, least = min(factors.items(), key=lambda item: item[1])
            out.append((f"{ours}: at least {aim} times as fast as {peer} in each of {len(factors)} rows",
                        f"geometric mean {ratio(geometric_mean(factors.values()))} times; "
                        f"least {ratio(least)}: {title}", least >= aim))
    return out


def aims_table(found):
    return table(["aim", "measured", "met"], [[aim, measured, "yes" if met else "NO"]
                                              for aim, measured, met in found])
