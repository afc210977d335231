"""Pictures of costs: how parameters, FLOPs and bytes are distributed."""

import textwrap
from pathlib import Path

from minimoe import terminal
from minimoe.cost import answers, deployment, published, quantities
from minimoe.plots import figures, palette

SHOWN, FIGURE = ("llama-2-7b", "mixtral-8x7b", "gpt-oss-20b", "deepseek-v3"), Path("figures/costs.png")
"""Published models in the README's picture."""

NAMES = {"dense": "dense FFNs", "keys and values": "KV cache", "embedding": "embeddings"}
"""Part -> how the picture calls it, where the field has a shorter name."""


def figure(say=terminal.say):
    """Draw the costs of published models, for the README."""
    usual = answers.Setting(deployment.MACHINES["h100"], None, "bf16", None)
    figures.save(cost_shares([answers.published_record(published.find(key), usual) for key in SHOWN]), FIGURE)
    say(f"wrote {FIGURE}")


@figures.picture
def cost_shares(records):
    """How parameters, FLOPs and bytes are distributed: for each model one bar of 100 % per quantity, with the total.

    records: of `cost.sheet`.  More than four are in two columns, more than eight in three, line by line.
    """
    columns = 1 + (len(records) > 4) + (len(records) > 8)
    lines = -(-len(records) // columns)
    figure = figures.new_figure(10 if columns == 1 else 7.5 * columns, 0.9 + 2.1 * lines)
    axes = list(figure.subplots(lines, columns, sharex=True, squeeze=False).flat)
    for axis in axes[len(records):]:
        axis.remove()
    seen = {}
    for place, (axis, record) in enumerate(zip(axes, records, strict=False)):
        seen = _draw_shares(axis, record) | seen
        if columns > 1:
            axis.title.set_fontsize(10.5)
        if place % columns and _labels(axis) == _labels(axes[place - place % columns]):  # named at the left
            axis.tick_params(labelleft=False)
        if place + columns >= len(records):  # nothing below
            axis.set_xlabel("share (%); right: the total")
            axis.tick_params(labelbottom=True)
    shown = [part for part in palette.PARTS if part in seen]
    figure.legend([seen[part] for part in shown], [NAMES.get(part, part) for part in shown],
                  loc="outside lower center", ncols=min(len(shown), 6 * columns),
                  frameon=False)
    return figure


def _labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def _draw_shares(axis, record):
    """The bars of one model.  Returns part -> a piece of its color."""
    bars, seen = _cost_bars(record), {}
    for row, (parts, _) in enumerate(bars.values()):
        left, whole = 0.0, sum(parts.values())
        for part in (part for part in palette.PARTS if parts.get(part)):
            share = 100 * parts[part] / whole
            seen[part] = axis.barh(row, share, left=left, color=palette.PARTS[part], edgecolor="white", lw=0.6)
            if share > 7:
                axis.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                          color=palette.ink_on(palette.PARTS[part]))
            left += share
    axis.set(xlim=(0, 100), title=textwrap.fill(_title(record, bars), 80))
    figures.name_rows(axis, list(bars), [whole for _, whole in bars.values()])
    figures.plain(axis)
    return seen


def _title(record, bars):
    """Where most of the parameters are, and how much of the FLOPs."""
    (total, _), (work, _) = bars["parameters"], bars["FLOPs per token"]
    part = max(total, key=total.get)
    has, does = total[part] / sum(total.values()), work.get(part, 0) / sum(work.values())
    return f"{record['name']}: {has:.0%} of the parameters and {does:.0%} of the FLOPs are in {NAMES.get(part, part)}"


def _cost_bars(record):
    """Label of a bar -> (part -> its amount, the total in words)."""
    read, flops = record["bytes_read"], record["forward_flops_per_token"]
    columns = {field: {row["part"]: row[field] for row in record["parts"]}
               for field in ("total", "active", "forward_flops_per_token")}
    return {
        "parameters": (columns["total"], quantities.short(record["parameters"]["total"])),
        "active parameters": (columns["active"], quantities.short(record["parameters"]["active_incl_all_embeddings"])),
        "FLOPs per token": (columns["forward_flops_per_token"], quantities.short(flops)),
        **{f"bytes to decode, batch size {n}": (read[n], quantities.short(sum(read[n].values()), "B"))
           for n in (1, 64) if n in read},
    }
