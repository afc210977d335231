"""The pictures of costs and failures: what is drawn where, and that the same figure gives the same bytes."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from minimoe.plots import palette
from minimoe.plots.lessons import downsides

ROWS = {"like small": (1.0, 1.0, 100.0, "B"), "half-way": (4.0, 8.0, 16.0, ""), "like large": (2.0, 32.0, 32.0, "s"),
        "seeds": (np.array([3.0, 5.0]), np.array([2.0, 2.0]), np.array([1.0, 1.0]), None)}
RAISED = {"healthy": [(0, 3), (0, 3), (0, 0)], "sick": [(3, 3), (1, 3), (2, 2)]}


def drawn_between():
    return downsides.relative_costs(ROWS, ("small", "MoE", "large"), "between")


def drawn_alarms():
    return downsides.alarms(RAISED, ["collapse", "dead", "drops"], "alarms")


def marks(axis, marker, shade):
    """(x, y) of all points with this marker and colour."""
    return [(x, y) for line in axis.lines if line.get_marker() == marker and to_hex(line.get_color()) == shade.lower()
            for x, y in zip(*line.get_data(), strict=True)]


def test_the_moe_stands_between_the_two_by_its_logarithm():
    # log(1/1) = 0;  log(8/4) / log(16/4) = 1/2;  log(32/2) / log(32/2) = 1;  means 4, 2, 1: log(2/4) / log(1/4) = 1/2
    axis = drawn_between().axes[0]
    places = marks(axis, "D", palette.MOE)
    np.testing.assert_allclose(places, [(0, 0), (0.5, 1), (1, 2), (0.5, 3)], atol=1e-12)
    assert [x for x, _ in marks(axis, "s", palette.DENSE)] == [0, 0, 0, 0]
    np.testing.assert_allclose([x for x, _ in marks(axis, "o", palette.LARGE_DENSE)], 1)
    assert axis.get_ylim()[0] > 3.28 and axis.get_ylim()[1] < 0  # the first row is at the top, seeds have room below


def test_the_moe_is_drawn_over_what_it_stands_on_and_smaller():
    lines = drawn_between().axes[0].lines
    marked = [line for line in lines if line.get_marker() in ("s", "D", "o") and len(line.get_xdata())]
    above = {line.get_zorder() for line in marked if line.get_marker() == "D"}
    below = {line.get_zorder() for line in marked if line.get_marker() != "D"}
    assert min(above) > max(below)
    assert downsides.SIZES["D"] < min(downsides.SIZES["s"], downsides.SIZES["o"])


def test_seeds_stand_below_their_mean_and_only_where_there_are_some():
    # 3 and 5 around 4, on the way to 1: log(3/4) / log(1/4) = 0.2075, log(5/4) / log(1/4) = -0.1610
    axis = drawn_between().axes[0]
    small = marks(axis, "|", palette.DENSE)
    np.testing.assert_allclose([x for x, _ in small], [0.2075, -0.1610], atol=1e-4)
    np.testing.assert_allclose([y for _, y in small], 3.28)
    assert [round(x, 9) for x, _ in marks(axis, "|", palette.MOE)] == [0.5, 0.5]


def test_the_three_numbers_stand_at_the_right_and_the_names_in_the_legend():
    figure = drawn_between()
    right = figure.axes[0].child_axes[0]
    assert [label.get_text() for label in right.get_yticklabels()] == [
        "1 B | 1 B | 100 B", "4 | 8 | 16", "2 s | 32 s | 32 s", "4.000 | 2.000 | 1.000"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(ROWS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "MoE", "large"]


def test_alarms_say_in_how_many_seeds():
    axis = drawn_alarms().axes[0]
    words = {text.get_position(): text.get_text() for text in axis.texts}
    assert words == {(0, 0): "ok", (0, 1): "ok", (0, 2): "–",
                     (1, 0): "ALARM 3/3", (1, 1): "ALARM 1/3", (1, 2): "ALARM 2/2"}
    assert [label.get_text() for label in axis.get_xticklabels()] == list(RAISED)
    assert axis.get_ylim() == (2.5, -0.5)  # the first failure is at the top


def test_alarms_differ_in_colour_from_what_is_well_and_can_be_read():
    axis = drawn_alarms().axes[0]
    faces = {(round(bar.get_x() + bar.get_width() / 2), round(bar.get_y() + bar.get_height() / 2)):
             to_hex(bar.get_facecolor()) for bar in axis.patches}
    assert faces[0, 0] == faces[0, 1] == faces[0, 2]
    assert faces[1, 0] == faces[1, 2] == palette.MOE.lower() != faces[1, 1] != faces[0, 0]
    for text in axis.texts:
        assert text.get_color() == palette.ink_on(faces[text.get_position()])


@pytest.mark.parametrize("draw", [drawn_between, drawn_alarms])
def test_the_same_figure_gives_the_same_bytes(draw):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        draw().savefig(file, format="png", metadata={"Software": None})
    assert first.getvalue() == second.getvalue()
