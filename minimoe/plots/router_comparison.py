"""All routers on one budget: loss, load, drops and time, one dot per seed."""

import numpy as np
from matplotlib.figure import Figure

from minimoe.plots import figures, palette

ROUTER_MARKS = {"causal": ("#0072B2", "o"), "causal in evaluation": ("#009E73", "s"),
                "sees the future": ("#999999", "x")}


def routers(results, kinds, title):
    """Loss, load, drops and time of each router: a dot a seed, a bar at their mean, of times at the median.

    results: name -> record with ce, load, drop, seconds, one entry a seed.  kinds: name -> a key of ROUTER_MARKS.
    """
    names = sorted(results, key=lambda name: (kinds[name] == "sees the future", results[name].ce.mean()))
    figure = Figure(figsize=(12, 0.36 * len(names) + 2.2), layout="constrained")
    panels = {"ce": "validation loss\n(nats per token)", "load": "busiest expert\n(1 is an even load)",
              "drop": "assignments dropped\n(share)", "seconds": "median step\n(milliseconds)"}
    for axis, (field, label) in zip(figure.subplots(1, 4, sharey=True), panels.items(), strict=True):
        for row, name in enumerate(names):
            values, (shade, mark) = getattr(results[name], field), ROUTER_MARKS[kinds[name]]
            values = values * 1000 if field == "seconds" else values
            axis.plot(values, np.full(len(values), row), mark, color=shade, ms=5, alpha=0.7)
            middle = np.median(values) if field == "seconds" else np.mean(values)  # a busy machine spoils a mean
            axis.plot([middle] * 2, [row - 0.3, row + 0.3], "-", color=shade, lw=2.5)
        axis.set(xlabel=label, yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
        axis.grid(axis="x", color="#dddddd", lw=0.6)
        figures.plain(axis)
    handles = [figure.axes[0].plot([], [], mark, color=shade, label=kind)[0]
               for kind, (shade, mark) in ROUTER_MARKS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title, color=palette.INK, fontsize=13)
    return figure
