"""The pictures of a MoE on machines: what is drawn where, and that the same figure gives the same bytes."""

import io

import numpy as np
import pytest

from minimoe.plots.lessons import machines

TEXTS, EVEN, DRAWN = (1, 2, 4), [2.0, 3.5, 5.5], ([2, 3, 4], [2, 4, 7])
FOUND = {"layer 0": [2.0, 3.4, 5.2], "layer 1": [2.0, 3.5, 5.4]}
COUNT_RR, ROWS_R = np.array([[10, 2], [1, 1]]), np.array([11, 3])
SMALL, MOE, LARGE = [100, 200, 300], [100, 120, 300], [40, 80, 100]
LINKS, WIDTHS = {"fast": 1000.0, "slow": 4000.0}, {"fine": 500, "wide": 2000}
STEPS = {"dense, b": (8.0, 200.0), "MoE": (4.0, 150.0), "dense, a": (4.0, 100.0)}


def drawn_experts():
    return machines.experts_used(TEXTS, EVEN, DRAWN, FOUND, 8, "experts")


def drawn_devices():
    return machines.device_traffic(COUNT_RR, ROWS_R, "devices")


def drawn_speeds():
    return machines.speeds(TEXTS, SMALL, MOE, LARGE, ("small", "MoE", "large"), "speeds")


def drawn_travel():
    return machines.travel_times(LINKS, WIDTHS, "travel")


def drawn_steps():
    return machines.step_times(STEPS, "steps")


def test_experts_are_drawn_beside_the_formula():
    axis = drawn_experts().axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert lines["even routing, by formula"] == EVEN
    assert {name: lines[name] for name in FOUND} == FOUND
    band = axis.collections[0].get_paths()[0].vertices
    for texts, low, high in zip(TEXTS, *DRAWN, strict=True):
        assert {low, high} <= set(band[band[:, 0] == texts, 1])
    looks = [(line.get_marker(), line.get_color()) for line in axis.lines if line.get_label() in FOUND]
    assert len({marker for marker, _ in looks}) == len({shade for _, shade in looks}) == 2
    assert axis.get_xscale() == "log" and axis.get_ylim()[1] > 8


def test_devices_show_every_number():
    figure = drawn_devices()
    sent, worked = figure.axes
    np.testing.assert_array_equal(sent.images[0].get_array(), COUNT_RR)
    assert {text.get_position(): text.get_text() for text in sent.texts} == {
        (0, 0): "10\nstays", (1, 0): "2", (0, 1): "1", (1, 1): "1\nstays"}  # (to, from)
    assert [bar.get_height() for bar in worked.patches] == [11, 3]
    assert worked.lines[0].get_ydata()[0] == 7  # the mean


def test_speeds_and_below_how_much_faster_the_moe_is_than_the_large_one():
    # 100/40 = 2.5, 120/80 = 1.5, 300/100 = 3
    above, below = drawn_speeds().axes
    assert [line.get_ydata().tolist() for line in above.lines] == [SMALL, MOE, LARGE]
    assert [line.get_label() for line in above.lines] == ["small", "MoE", "large"]
    assert below.lines[0].get_ydata().tolist() == [2.5, 1.5, 3.0]
    assert below.lines[1].get_ydata()[0] == 1


def test_travel_falls_with_the_width_and_experts_stand_on_the_first_link():
    # 1000/500 = 2 and 1000/2000 = 1/2 on the fast link; the slow one takes four times as long everywhere
    axis = drawn_travel().axes[0]
    fast, slow, *dots, one = axis.lines
    assert [(line.get_label(), line.get_linestyle()) for line in (fast, slow)] == [("fast", "-"), ("slow", "--")]
    for line, slope in ((fast, 1000), (slow, 4000)):
        np.testing.assert_allclose(line.get_xdata() * line.get_ydata(), slope)
    assert [tuple(float(v[0]) for v in dot.get_data()) for dot in dots] == [(500, 2.0), (2000, 0.5)]
    assert [text.get_text() for text in axis.texts] == ["fine, 500", "wide, 2,000"]
    assert one.get_ydata()[0] == 1 and (axis.get_xscale(), axis.get_yscale()) == ("log", "log")


def test_steps_join_the_dense_models_alone_and_name_all():
    axis = drawn_steps().axes[0]
    dense, moe = axis.lines
    assert list(zip(*dense.get_data(), strict=True)) == [(4.0, 100.0), (8.0, 200.0)]
    assert list(zip(*moe.get_data(), strict=True)) == [(4.0, 150.0)]
    assert (dense.get_linestyle(), moe.get_linestyle()) == ("-", "None")
    assert dense.get_marker() != moe.get_marker() and dense.get_color() != moe.get_color()
    assert {text.get_text(): text.xy for text in axis.texts} == STEPS
    low, high = axis.get_ylim()
    assert low < 100 and high > 200


@pytest.mark.parametrize("draw", [drawn_experts, drawn_devices, drawn_speeds, drawn_travel, drawn_steps])
def test_the_same_figure_gives_the_same_bytes(draw):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        draw().savefig(file, format="png", metadata={"Software": None})
    assert first.getvalue() == second.getvalue()
