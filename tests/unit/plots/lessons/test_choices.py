"""The pictures of what routers decide: what is drawn where, and that the same figure gives the same bytes."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex

from minimoe.plots import palette
from minimoe.plots.lessons import choices

ONE_TE = np.array([[0.7, 0.3, 0], [0, 1, 0]])
TWO_TE = np.array([[0, 0.5, 0], [0.25, 0.25, 0]])
MARKED = {"one": np.zeros((2, 3), bool), "two": np.array([[False, True, False], [False, False, True]])}


def drawn(changed=None, columns=2):
    return choices.weight_maps({"one": ONE_TE, "two": TWO_TE, "three": TWO_TE}, "a ", "title", changed, columns)


def test_there_is_a_panel_a_router_in_order_and_the_empty_place_is_off():
    figure = drawn()
    assert [axis.get_title() for axis in figure.axes[:4]] == ["one", "two", "three", ""]
    assert not figure.axes[3].axison


def test_a_column_is_a_token_a_row_an_expert_and_nothing_is_white():
    image = drawn().axes[0].images[0]
    np.testing.assert_array_equal(image.get_array().filled(-1), [[0.7, -1], [0.3, 1], [-1, -1]])
    assert image.get_clim() == (0, 1)


def test_more_weight_is_darker():
    image = drawn().axes[0].images[0]
    greys = [np.dot(image.cmap(image.norm(weight))[:3], (0.299, 0.587, 0.114)) for weight in (0.1, 0.5, 1.0)]
    assert greys == sorted(greys, reverse=True)


def test_tokens_are_named_below_and_counted_at_the_right():
    # expert 0 has token 0 alone, expert 1 both, expert 2 none
    axis = drawn().axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "␣"]
    assert [text.get_text() for text in axis.texts] == ["1", "2", "0"]


def test_what_changed_has_a_frame():
    changed = MARKED | {"three": MARKED["one"]}
    first, second, third = drawn(changed).axes[:3]
    assert not first.patches and not third.patches
    frames = [(patch.get_x() + 0.5, patch.get_y() + 0.5, to_hex(patch.get_edgecolor())) for patch in second.patches]
    assert frames == [(0, 1, palette.FRAME.lower()), (1, 2, palette.FRAME.lower())]


def test_one_column_puts_the_panels_below_each_other():
    assert drawn(columns=1).get_figheight() > drawn().get_figheight()


@pytest.mark.parametrize("changed", [None, MARKED | {"three": MARKED["one"]}])
def test_the_same_figure_gives_the_same_bytes(changed):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        drawn(changed).savefig(file, format="png", metadata={"Software": None})
    assert first.getvalue() == second.getvalue()
