"""Losses: curves against steps and FLOPs, routers on one budget, and where the time of a step goes."""

import numpy as np

from minimoe.plots import loss_curves, palette
from tests.unit.plots.pictures import CE, CURVES, RUNS, STEPS, TITLED, drawn, words


def test_curves_are_the_mean_of_the_seeds_and_bands_their_range_against_steps():
    """Against FLOPs, the end of one schedule would stand over the middle of another."""
    axis, = drawn("losses")
    np.testing.assert_allclose(axis.lines[0].get_xydata(), np.stack([STEPS, [3.5, 2.25, 1.5]], axis=1))
    assert {tuple(corner) for corner in axis.collections[0].get_paths()[0].vertices} == {
        (place, loss) for place, of_seeds in zip(STEPS, CE.T, strict=True) for loss in of_seeds}
    assert len({line.get_linestyle() for line in axis.lines}) == 3  # not by color alone
    legend = axis.get_legend()
    assert [legend.get_title().get_text(), *words(legend.get_texts())] == ["mean and range of 2 seeds", *CURVES]
    alone = loss_curves.losses({"MoE": (STEPS, CE[0])}, "title").axes[0]  # one seed may come as one row
    assert alone.lines[0].get_ydata().tolist() == [3, 2.5, 2] and not alone.collections
    assert alone.get_legend().get_title().get_text() == ""


def test_routers_stand_by_their_loss_and_those_that_see_the_future_last():
    figure, names = TITLED["routers"][0](""), ["gshard", "hash", "soft"]
    ce, *_, seconds = figure.axes
    assert words(ce.get_yticklabels()) == names and words(figure.legends[0].get_texts()) == list(palette.ROUTER_STYLES)
    for row, (name, kind) in enumerate(zip(names, ("causal in evaluation", "causal", "sees the future"), strict=True)):
        dots, bar = ce.lines[2 * row:2 * row + 2]
        assert dots.get_xydata().tolist() == [[loss, row] for loss in RUNS[name].ce]
        assert set(bar.get_xdata()) == {RUNS[name].ce.mean()}
        assert (dots.get_color(), dots.get_marker()) == palette.ROUTER_STYLES[kind]
    assert set(seconds.lines[1].get_xdata()) == {200}  # milliseconds, the median: one slow run does not count


def test_times_are_stacked_part_by_part_and_layer_by_layer():
    axes = {axis.get_label(): axis for axis in drawn("time")}
    found = {panel: [[tuple(np.round(bar.get_bbox().bounds[::2], 9)) for bar in bars] for bars in axis.containers]
             for panel, axis in axes.items()}
    assert found == {
        "step": [[(0, 10)], [(10, 60)], [(70, 30)]],
        "forward": [[(0, 10), (0, 0)], [(10, 0), (0, 25)], [(10, 0), (25, 0)]],
        "backward": [[(0, 0), (0, 0)], [(0, 30), (0, 5)], [(30, 0), (5, 0)]]}
    assert words(axes["step"].texts) == ["10%", "experts\n60%", "rest\n30%"]
    assert axes["forward"].get_xlim() == axes["backward"].get_xlim()
    assert axes["forward"].get_ylim() == (1.5, -0.5)  # layer 0 on top
