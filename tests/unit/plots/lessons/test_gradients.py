"""Pictures of lesson 03: the map of both directions, who gets gradient, errors against steps, flips, and curves."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from minimoe.plots import figures, palette
from minimoe.plots.lessons import gradients

ORANGE, BLUE = "#d55e00", "#0072b2"
DLOGIT_TE = np.array([[-0.5, 0.0, 0.5], [0.0, 2.0, -2.0]])
CHOSEN_TE = np.array([[True, False, True], [False, True, True]])
STEPS = np.array([1e-2, 1e-3])
ERRORS = np.array([[1.0, 1e-4, 1e-5], [1e-6, 10.0, 1e-7]])
FLIPPED = np.array([[True, False, False], [False, True, False]])
CURVES = np.array([[[3.0, 2.0], [4.0, 1.0]], [[5.0, 4.0], [6.0, 3.0]]])

FIGURES = {
    "map": gradients.gradient_map,
    "scores": lambda: gradients.score_gradients({"raw": DLOGIT_TE, "balance": DLOGIT_TE / 100}, CHOSEN_TE, "ab",
                                                "title"),
    "steps": lambda: gradients.errors_by_step(STEPS, {"central": [1e-4, 1e-6], "complex": [1e-4, 0.0]}, "title"),
    "flips": lambda: gradients.flips(STEPS, ERRORS, FLIPPED, "title"),
    "curves": lambda: gradients.training_curves({"distance": CURVES, "loss": CURVES + 1}, ("dead", "raw"), "title"),
}

each_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def words(axis):
    return [text.get_text() for text in axis.texts]


def arrows(axis, shade):
    """(from, to) of the arrows of a colour."""
    return [(text.xyann, text.xy) for text in axis.texts
            if getattr(text, "arrow_patch", None) and to_hex(text.arrow_patch.get_edgecolor()) == shade]


def box_at(place):
    """The box whose edge is nearest to a place."""
    def outside(name):
        x, y, _ = gradients.BOXES[name]
        return max(abs(place[0] - x) - gradients.WIDTH / 2, abs(place[1] - y) - gradients.HEIGHT / 2)
    return min(gradients.BOXES, key=outside)


@each_figure
def test_every_picture_is_a_figure_that_fits_a_page(draw):
    figure = draw()
    assert type(figure) is Figure and 7 <= figure.get_figwidth() <= 8 and figure.get_dpi() == 100


@each_figure
def test_no_words_are_smaller_than_nine_points(draw):
    for axis in draw().axes:
        assert min(text.get_fontsize() for text in [axis.title, axis.xaxis.label, *axis.texts]) >= 9


@each_figure
def test_the_same_figure_is_the_same_bytes(tmp_path, draw):
    figures.save(draw(), tmp_path / "one.png")
    figures.save(draw(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_map_has_a_box_with_its_words_for_each_step():
    axis = gradients.gradient_map().axes[0]
    assert len(axis.patches) == len(gradients.BOXES)
    assert {name for _, _, name in gradients.BOXES.values()} <= set(words(axis))
    assert {name for _, _, name in gradients.WAYS} <= set(words(axis))


def test_gradients_come_back_wherever_numbers_go_forward_but_not_through_the_choice():
    axis = gradients.gradient_map().axes[0]
    back = {(box_at(head), box_at(tail)) for tail, head in arrows(axis, ORANGE)}
    forward = {(box_at(tail), box_at(head)) for tail, head in arrows(axis, palette.FORWARD)}
    # the five steps of layer.moe_forward: the choice is made from p, and says whose gates and whose rows
    assert back == {("x", "scores"), ("scores", "softmax"), ("softmax", "gates"), ("gates", "combine"),
                    ("x", "dispatch"), ("dispatch", "experts"), ("experts", "combine"), ("combine", "loss")}
    assert forward == back | {("softmax", "choice"), ("choice", "gates"), ("choice", "dispatch")}


def test_a_cell_says_its_gradient_with_digits_enough_to_see_it():
    # the largest is 2: two digits;  the largest is 0.02: 1 - floor(log10 0.02) = 3 digits
    raw, balance = FIGURES["scores"]().axes
    assert words(raw) == ["-0.50", "0", "+0.50", "0", "+2.00", "-2.00"]
    assert words(balance) == ["-0.005", "0", "+0.005", "0", "+0.020", "-0.020"]


def test_what_was_chosen_has_a_frame():
    for axis in FIGURES["scores"]().axes:
        middles = [(round(p.get_y() + p.get_height() / 2), round(p.get_x() + p.get_width() / 2)) for p in axis.patches]
        assert middles == list(zip(*CHOSEN_TE.nonzero(), strict=True))


def test_colour_is_the_root_of_the_gradient_and_nothing_has_none():
    # roots of -0.5, 0.5, 2 and -2, where 2 is half of the scale
    image = FIGURES["scores"]().axes[0].images[0]
    np.testing.assert_array_equal(image.get_array().mask, DLOGIT_TE == 0)
    np.testing.assert_allclose(image.get_array().compressed(), [-0.5 ** 0.5, 0.5 ** 0.5, 2 ** 0.5, -(2 ** 0.5)])
    assert image.get_clim() == pytest.approx((-2 * 2 ** 0.5, 2 * 2 ** 0.5))


def test_a_panel_without_any_gradient_can_be_drawn():
    axis = gradients.score_gradients({"dead": np.zeros((2, 3))}, CHOSEN_TE, "ab", "title").axes[0]
    assert words(axis) == ["0"] * 6


def test_errors_are_drawn_against_steps_and_one_of_zero_at_the_bottom():
    axis = FIGURES["steps"]().axes[0]
    central, complex_ = axis.lines
    assert [line.get_label() for line in axis.lines] == ["central", "complex"]
    np.testing.assert_array_equal(central.get_xdata(), STEPS)
    assert central.get_ydata().tolist() == [1e-4, 1e-6] and complex_.get_ydata().tolist() == [1e-4, gradients.BOTTOM]
    assert axis.get_xlim()[0] > axis.get_xlim()[1]  # smaller to the right
    assert (central.get_marker(), central.get_linestyle()) != (complex_.get_marker(), complex_.get_linestyle())


def test_flips_are_crosses_and_the_rest_circles_each_at_its_error():
    axis = FIGURES["flips"]().axes[0]
    crosses, circles = axis.lines
    assert (crosses.get_marker(), circles.get_marker()) == ("x", "o")
    assert (to_hex(crosses.get_color()), to_hex(circles.get_color())) == (ORANGE, BLUE)
    assert crosses.get_ydata().tolist() == [1.0, 10.0]
    assert circles.get_ydata().tolist() == [1e-4, 1e-5, 1e-6, 1e-7]


def test_marks_stand_near_their_step_side_by_side():
    crosses, circles = FIGURES["flips"]().axes[0].lines
    np.testing.assert_allclose(crosses.get_xdata(), [1e-2 * 10 ** -0.25, 1e-3])
    np.testing.assert_allclose(circles.get_xdata(), [1e-2, 1e-2 * 10 ** 0.25, 1e-3 * 10 ** -0.25, 1e-3 * 10 ** 0.25])


def test_flips_are_counted_above_each_step():
    axis = FIGURES["flips"]().axes[0]
    assert [(text.get_position()[0], text.get_text()) for text in axis.texts] == [
        (1e-2, "1 of 3\nflipped"), (1e-3, "1 of 3\nflipped")]
    assert axis.get_ylim()[0] < ERRORS.min() and axis.get_ylim()[1] > axis.texts[0].get_position()[1] > ERRORS.max()


def test_each_seed_is_a_line_from_step_one_and_each_name_a_kind_of_line():
    figure = FIGURES["curves"]()
    for axis, more in zip(figure.axes, (0, 1), strict=True):
        assert [line.get_ydata().tolist() for line in axis.lines] == (CURVES + more).reshape(4, 2).tolist()
        assert all(line.get_xdata().tolist() == [1, 2] for line in axis.lines)
        assert [line.get_linestyle() for line in axis.lines] == ["-", "-", "--", "--"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["distance", "loss"]
    assert [axis.get_yscale() for axis in figure.axes] == ["linear", "log"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dead, 2 seeds", "raw, 2 seeds"]
