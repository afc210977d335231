"""Pictures of costs: where parameters, FLOPs and bytes are; what a loss costs."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from minimoe.analysis import plots
from minimoe.analysis.cost.report import quantity

SHARE_COLOURS = {"experts": "#0072B2", "shared experts": "#56B4E9", "dense": "#009E73", "attention": "#E69F00",
                 "attention scores": "#F0E442", "keys and values": "#D55E00", "router": "#000000", "head": "#CC79A7",
                 "embedding": "#999999", "positions": "#bbbbbb", "norms": "#dddddd"}
"""Part of a model -> its colour in every figure of costs."""


def cost_shares(records):
    """Where parameters, FLOPs and bytes are: for each model one bar of 100 % for each of them, its whole at the end.

    records: of `cost.sheet`.
    """
    figure = Figure(figsize=(10, 0.9 + 2.1 * len(records)), layout="constrained")
    axes, seen = np.atleast_1d(figure.subplots(len(records), 1, sharex=True)), {}
    for axis, record in zip(axes, records, strict=True):
        bars = _cost_bars(record)
        for row, (parts, _) in enumerate(bars.values()):
            left, whole = 0.0, sum(parts.values())
            for part in (part for part in SHARE_COLOURS if parts.get(part)):
                share = 100 * parts[part] / whole
                bar = axis.barh(row, share, left=left, color=SHARE_COLOURS[part], edgecolor="white", lw=0.6)
                seen.setdefault(part, bar)
                if share > 7:
                    axis.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                              color=plots.ink_on(SHARE_COLOURS[part]))
                left += share
        axis.set(yticks=range(len(bars)), yticklabels=list(bars), ylim=(len(bars) - 0.4, -0.6), xlim=(0, 100),
                 title=_title(record, bars))
        right = axis.secondary_yaxis("right")
        right.set(yticks=range(len(bars)), yticklabels=[whole for _, whole in bars.values()])
        right.tick_params(length=0, colors=plots.INK)
        right.spines[:].set_visible(False)
        plots.plain(axis)
    axes[-1].set_xlabel("share (%); at the right the whole")
    shown = [part for part in SHARE_COLOURS if part in seen]
    figure.legend([seen[part] for part in shown], shown, loc="outside lower center", ncols=min(len(shown), 6),
                  frameon=False)
    return figure


def _title(record, bars):
    """The part that has most of the parameters, and what it has of the FLOPs."""
    (total, _), (work, _) = bars["parameters"], bars["FLOPs a token"]
    part = max(total, key=total.get)
    has, does = total[part] / sum(total.values()), work.get(part, 0) / sum(work.values())
    part = "feed-forward blocks" if part == "dense" else part
    return f"{record['name']}: {part}, {has:.0%} of the parameters and {does:.0%} of the FLOPs"


def _cost_bars(record):
    """Label of a bar -> (part -> its amount, the whole in words)."""
    read, flops = record["bytes_read"], record["forward_flops_per_token"]
    columns = {field: {row["part"]: row[field] for row in record["parts"]}
               for field in ("total", "active", "forward_flops_per_token")}
    return {
        "parameters": (columns["total"], quantity(record["parameters"]["total"])),
        "active parameters": (columns["active"], quantity(record["parameters"]["active"])),
        "FLOPs a token": (columns["forward_flops_per_token"], quantity(flops)),
        **{f"bytes to decode {n} text{'s' * (n > 1)}": (read[n], quantity(sum(read[n].values()), "B"))
           for n in (1, 64) if n in read},
    }


FAMILIES = {"MoE": ("#D55E00", "o"), "dense": ("#0072B2", "s")}
"""First word of a model's name -> its colour and marker."""


def pareto(entries, title):
    """Loss against training FLOPs: a numbered marker a model, its area the total parameters; below and left is better.

    entries: of `worth`.  Filled: at equal steps, joined by a line.  Open: a dense model at another budget.
    """
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axis, key = figure.subplots(), []
    largest = max(entry.parameters.total for entry in entries)
    for family, (shade, mark) in FAMILIES.items():
        of_family = [entry for entry in entries if entry.name.startswith(family)]
        joined = [entry for entry in of_family if entry.budget == "steps"]
        axis.plot([e.flops for e in joined], [e.ce.mean() for e in joined], "-", color=shade, lw=1, alpha=0.6)
        spots = {}
        for entry in joined + [e for e in of_family if e.budget != "steps"]:  # budgets can be as many steps: one spot
            spots.setdefault((entry.name, entry.steps), []).append(entry)
        for entry, *others in spots.values():
            face, edge = (shade, "white") if entry.budget == "steps" else ("white", shade)
            key.append(axis.scatter(
                entry.flops, entry.ce.mean(), 90 + 700 * entry.parameters.total / largest, marker=mark, edgecolor=edge,
                facecolor=face, zorder=3, label=f"{len(key) + 1}  {entry.name}, {quantity(entry.parameters.total)}"
                + ("" if entry.budget == "steps" else f": equal {' and '.join(e.budget for e in (entry, *others))}")))
            axis.vlines(entry.flops, entry.ce.min(), entry.ce.max(), color=shade, lw=1.5, zorder=2)
            axis.annotate(str(len(key)), (entry.flops, entry.ce.mean()), ha="center", va="center", fontsize=8, zorder=4,
                          color="white" if entry.budget == "steps" else plots.INK)
    axis.set(xscale="log", xlabel="training FLOPs (matrix products, forward and backward)",
             ylabel="validation loss (nats per token)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda flops, _: quantity(flops))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.08, y=0.1)
    plots.plain(axis)
    legend = figure.legend(handles=key, loc="outside right center", frameon=False, fontsize=9,
                           title="model, total parameters (area)\nbars: all seeds; open: another budget")
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    figure.suptitle(title, color=plots.INK, fontsize=13)
    return figure
