"""All routers on one budget: loss, load, drops and time, one dot per seed."""

import numpy as np

from minimoe.plots import figures, palette


@figures.picture
def routers(results, kinds, title):
    """Loss, load, drops and time of each router: one dot per seed, and a bar at the mean, or for times at the median.

    Args:
        results: name -> record with ce, load, drop, seconds, one entry per seed.
        kinds: name -> a key of `palette.ROUTER_STYLES`.
        title: words.
    """
    names = sorted(results, key=lambda name: (kinds[name] == "sees the future", results[name].ce.mean()))
    figure = figures.new_figure(10, 0.34 * len(names) + 2.4, title)
    panels = {"ce": "validation loss\n(nats per token)", "load": "load of the busiest\nexpert (1 is an even load)",
              "drop": "assignments dropped\n(share)", "seconds": "training step, median\n(milliseconds)"}
    for axis, (field, label) in zip(figure.subplots(1, 4, sharey=True), panels.items(), strict=True):
        for row, name in enumerate(names):
            values, (shade, mark) = getattr(results[name], field), palette.ROUTER_STYLES[kinds[name]]
            values = values * 1000 if field == "seconds" else values
            if field == "drop" and np.isnan(results[name].load).all():
                continue  # no assignments, so that none can be dropped
            axis.plot(values, np.full(len(values), row), mark, color=shade, ms=5, alpha=0.7)
            middle = np.median(values) if field == "seconds" else np.mean(values)  # a busy machine distorts a mean
            axis.plot([middle] * 2, [row - 0.3, row + 0.3], "-", color=shade, lw=2.5)
        axis.set_xlabel(label)
        figures.name_rows(axis, names)
        axis.grid(axis="x", color=palette.GRID, lw=0.6)
        figures.plain(axis)
    handles = [figure.axes[0].plot([], [], mark, color=shade, label=kind)[0]
               for kind, (shade, mark) in palette.ROUTER_STYLES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure
