"""The picture of losses against training FLOPs: who is drawn, where, how large, how filled, and under which name."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from minimoe.analysis import cost, cost_plots, plots, worth

ORANGE, BLUE, WHITE = "#d55e00", "#0072b2", "#ffffff"


def entry(name, budget, steps, total, flops, *ces):
    active = 200_000 if name.startswith("MoE") else total
    return worth.Entry(name, budget, steps, cost.Parameters(total, active, 0, 0), flops, 1.0, np.array(ces))


HALF = entry("dense, half of active", "steps", 600, 100_000, 1e9, 3.0, 3.2)
ACTIVE = entry("dense, same active", "steps", 600, 200_000, 2e9, 2.5, 2.7)
TOTAL = entry("dense, same total", "steps", 600, 800_000, 8e9, 2.0, 2.1)
FEW = entry("MoE, 2 of 4", "steps", 600, 400_000, 2e9, 2.4, 2.5)
MAIN = entry("MoE, 2 of 8", "steps", 600, 800_000, 2.1e9, 2.3, 2.2)
LONGER = entry("dense, same active", "time", 1_500, 200_000, 5e9, 2.2, 2.3)
SHORTER = entry("dense, same total", "FLOPs", 158, 800_000, 2.1e9, 2.9, 2.8)
ENTRIES = [HALF, ACTIVE, TOTAL, FEW, MAIN, SHORTER, LONGER]

# the MoEs are numbered before the dense models, each at equal steps before other budgets
ORDER = [FEW, MAIN, HALF, ACTIVE, TOTAL, SHORTER, LONGER]


def drawn(entries=ENTRIES):
    return cost_plots.pareto(entries, "title")


def markers(figure):
    return [marker for marker in figure.axes[0].collections if isinstance(marker, PathCollection)]


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_entry_has_a_marker_at_its_flops_and_mean_loss():
    places = [marker.get_offsets().tolist()[0] for marker in markers(drawn())]
    np.testing.assert_allclose(places, [(e.flops, sum(e.ce) / 2) for e in ORDER])


def test_markers_are_numbered_in_the_order_of_the_legend():
    figure = drawn()
    numbers = figure.axes[0].texts
    assert [text.get_text() for text in numbers] == list("1234567")
    np.testing.assert_allclose([text.xy for text in numbers], [(e.flops, sum(e.ce) / 2) for e in ORDER])
    assert [label.split()[0] for label in labels(figure)] == list("1234567")


def test_the_legend_names_model_size_and_budget():
    assert labels(drawn()) == [
        "1  MoE, 2 of 4, 400 k", "2  MoE, 2 of 8, 800 k", "3  dense, half of active, 100 k",
        "4  dense, same active, 200 k", "5  dense, same total, 800 k", "6  dense, same total, 800 k: equal FLOPs",
        "7  dense, same active, 200 k: equal time"]


def test_the_area_grows_with_the_total_parameters_and_with_nothing_else():
    areas = [marker.get_sizes()[0] for marker in markers(drawn())]
    of_size = {}
    for e, area in zip(ORDER, areas, strict=True):
        of_size.setdefault(e.parameters.total, set()).add(area)
    assert all(len(same) == 1 for same in of_size.values())
    in_order = [min(of_size[size]) for size in sorted(of_size)]
    assert in_order == sorted(in_order) and len(set(in_order)) == 4
    # 100, 200, 400 and 800 thousand: each step is twice the one before it
    np.testing.assert_allclose(np.diff(in_order) / (in_order[1] - in_order[0]), [1, 2, 4])


def test_filled_is_at_equal_steps_and_open_at_another_budget():
    colours = [ORANGE] * 2 + [BLUE] * 5
    for e, shade, marker in zip(ORDER, colours, markers(drawn()), strict=True):
        face, edge = to_hex(marker.get_facecolor()[0]), to_hex(marker.get_edgecolor()[0])
        assert (face, edge) == ((shade, WHITE) if e.budget == "steps" else (WHITE, shade))


def test_numbers_can_be_read_on_their_markers():
    for marker, text in zip(markers(drawn()), drawn().axes[0].texts, strict=True):
        assert (to_hex(marker.get_facecolor()[0]) == WHITE) == (to_hex(text.get_color()) == plots.INK)
        assert to_hex(text.get_color()) in (WHITE, plots.INK)


def test_moe_and_dense_differ_in_more_than_colour():
    shapes = [marker.get_paths()[0].vertices.shape for marker in markers(drawn())]
    assert len(set(shapes[:2])) == len(set(shapes[2:])) == 1 and shapes[0] != shapes[2]


def test_a_line_joins_each_kind_at_equal_steps():
    moes, dense = drawn().axes[0].lines
    np.testing.assert_allclose(moes.get_xydata(), [(2e9, 2.45), (2.1e9, 2.25)])
    np.testing.assert_allclose(dense.get_xydata(), [(1e9, 3.1), (2e9, 2.6), (8e9, 2.05)])


def test_a_bar_reaches_over_the_losses_of_all_seeds():
    bars = [bar.get_segments()[0] for bar in drawn().axes[0].collections if isinstance(bar, LineCollection)]
    np.testing.assert_allclose(bars, [[(e.flops, min(e.ce)), (e.flops, max(e.ce))] for e in ORDER])


def test_a_budget_that_is_the_same_run_is_not_drawn_twice():
    again = [ACTIVE._replace(budget="FLOPs"), TOTAL._replace(budget="time", seconds=2.0)]
    assert labels(drawn([*ENTRIES, *again])) == labels(drawn())


def test_two_budgets_that_are_the_same_run_share_a_marker():
    figure = drawn([*ENTRIES, SHORTER._replace(budget="time"), LONGER._replace(steps=1_501, flops=5.1e9)])
    assert len(markers(figure)) == 8
    assert labels(figure)[5] == "6  dense, same total, 800 k: equal FLOPs and time"


@pytest.mark.parametrize("entries", [ENTRIES, [MAIN], [MAIN._replace(ce=np.array([2.0])),
                                                      TOTAL._replace(ce=np.array([2.0]))]])
def test_the_axes_are_finite_and_hold_all_that_is_drawn(entries):
    axis = drawn(entries).axes[0]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert np.isfinite([left, right, bottom, top]).all()
    for e in entries:
        assert 0 < left < e.flops < right and bottom < e.ce.min() <= e.ce.max() < top


def test_the_axes_say_what_they_show_and_in_which_unit():
    figure = drawn()
    axis = figure.axes[0]
    assert axis.get_xlabel().startswith("training FLOPs") and axis.get_xscale() == "log"
    assert axis.get_ylabel() == "validation loss (nats per token)"
    assert figure.get_suptitle() == "title"
    assert {"area", "bars", "open"} <= set(figure.legends[0].get_title().get_text().replace(":", " ").replace(
        "(", " ").replace(")", " ").split())


def test_ticks_are_round_numbers_of_flops_in_words():
    axis = drawn().axes[0]
    left, right = axis.get_xlim()
    shown = {axis.xaxis.get_major_formatter()(tick, 0) for tick in axis.get_xticks() if left <= tick <= right}
    assert {"1 G", "2 G", "5 G"} <= shown


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        plots.save(drawn(), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
