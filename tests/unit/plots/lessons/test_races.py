"""The pictures of lesson 06: what is drawn where, and that the same figure gives the same bytes."""

import io

import numpy as np
import pytest

from minimoe.plots import palette
from minimoe.plots.lessons import races

X, CE = np.array([1.0, 2.0]), np.array([[3.0, 2.0], [5.0, 2.4]])
"""Two seeds: means 4 and 2.2, ranges 3 to 5 and 2 to 2.4."""

ROWS = {"even": np.array([0.02, -0.01, 0.02]), "behind": np.array([-0.1, -0.3, -0.2])}
"""Means 0.01, of two seeds' sign, and -0.2, of all three's."""

SIZES, FAMILY = np.array([100, 200, 400]), np.array([[3.0, 3.2], [2.0, 2.2], [2.4, 2.2]])
FALLING = np.array([3.1, 2.2, 2.2])
"""Means 3.1, 2.1 and 2.3; the last two rise, and are pooled to 2.2."""

COUNT = [np.array([[3, 1], [0, 4], [2, 2]]), np.array([[4, 0], [4, 0], [1, 3]])]
"""Two layers, three letters, two experts."""


def drawn_races():
    return races.races({"steps": ("steps", [(X, CE), (X, CE + 1), (X, CE + 2)]),
                        "time": ("seconds", [(X, CE), (2 * X, CE), (X, CE)])}, ("a", "b", "c"), "race", highest=3.5)


def drawn_gaps():
    return races.gaps(ROWS, "gaps")


def drawn_worths():
    moes = {"x": (2.65, 141.0), "y": (1.9, 400 - 1e-9), "z": (3.3, 100 + 1e-9)}
    return races.effective_sizes(SIZES, FAMILY, FALLING, moes, "worth")


def drawn_letters():
    return races.letters(COUNT, ("ab", "c"), 1, "letters")


def test_races_draw_the_mean_of_the_seeds_and_mark_its_end():
    steps, times = drawn_races().axes
    curve, end = steps.lines[:2]
    np.testing.assert_allclose(curve.get_xydata(), [[1, 4], [2, 2.2]])
    np.testing.assert_allclose(end.get_xydata(), [[2, 2.2]])
    np.testing.assert_allclose(times.lines[3].get_xydata(), [[4, 2.2]])  # the second model's end


def test_races_band_the_range_of_the_seeds():
    band = drawn_races().axes[0].collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in band} == {(1, 3), (1, 5), (2, 2), (2, 2.4)}


def test_races_name_budgets_and_axes_and_share_their_height():
    figure = drawn_races()
    assert [axis.get_title() for axis in figure.axes] == ["equal steps", "equal time"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["steps", "seconds"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert low < 2 and high == 3.5  # the lowest loss of all is 2


def test_gaps_draw_each_seed_and_their_mean():
    dots, mean = drawn_gaps().axes[0].lines[:2]
    np.testing.assert_allclose(dots.get_xydata(), [[0.02, 0], [-0.01, 0], [0.02, 0]])
    np.testing.assert_allclose(mean.get_xdata(), [0.01, 0.01])


def test_gaps_say_the_mean_and_how_many_seeds_have_its_sign():
    right = drawn_gaps().axes[0].child_axes[0]
    assert [label.get_text() for label in right.get_yticklabels()] == ["+0.010, 2 of 3", "-0.200, 3 of 3"]


def test_gaps_colour_who_is_better_and_show_every_dot():
    axis = drawn_gaps().axes[0]
    assert [axis.lines[i].get_color() for i in (0, 2)] == [palette.MOE, palette.DENSE]
    left, right = axis.get_xlim()
    assert left < -0.3 and right > 0.02


def test_worths_draw_seeds_means_line_and_moes():
    lines = drawn_worths().axes[0].lines
    np.testing.assert_allclose(lines[1].get_xydata(), [[200, 2.0], [200, 2.2]])  # the seeds of the second model
    np.testing.assert_allclose(lines[3].get_xydata(), [[100, 3.1], [200, 2.1], [400, 2.3]])
    np.testing.assert_allclose(lines[4].get_ydata(), FALLING)
    np.testing.assert_allclose(lines[5].get_ydata(), [2.65, 2.65])
    np.testing.assert_allclose(lines[6].get_xydata(), [[141, 2.65]])


def test_worths_say_where_the_family_ends_though_logarithms_have_rounded_its_sizes():
    words = [text.get_text() for text in drawn_worths().axes[0].get_legend().get_texts()]
    assert words[2:] == ["x: worth 141", "y: worth at least 400", "z: worth at most 100"]


def test_letters_show_the_share_of_each_letter_that_an_expert_takes():
    first, second = (axis.images[0] for axis in drawn_letters().axes[:2])
    np.testing.assert_allclose(first.get_array(), [[0.75, 0, 0.5], [0.25, 1, 0.5]])
    np.testing.assert_allclose(second.get_array(), [[1, 1, 0.25], [0, 0, 0.75]])
    assert first.get_clim() == (0, 1)


def test_letters_are_named_and_parted_by_group():
    axis = drawn_letters().axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [line.get_xdata()[0] for line in axis.lines] == [1.5]


@pytest.mark.parametrize("draw", [drawn_races, drawn_gaps, drawn_worths, drawn_letters])
def test_the_same_figure_gives_the_same_bytes(draw):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        draw().savefig(file, format="png", metadata={"Software": None})
    assert first.getvalue() == second.getvalue()
