"""The pictures of capacity: what is drawn where, and that the same figure gives the same bytes."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minimoe.plots import palette
from minimoe.plots.lessons import dropping

COUNT_E, ROOM = np.array([5, 2, 3]), 3
LOST = {"one": np.array([[0, 1, 2], [2, 2, 0]]), "two": np.zeros((2, 3), int), "three": np.ones((2, 3), int)}
CE = np.array([[[3.0, 2.0], [2.5, 2.2]], [[3.2, 2.2], [2.7, 2.2]]])
"""Two seeds; means 3.1, 2.1 and 2.6, 2.2; half ranges .1, .1 and .1, 0."""


def drawn_rooms():
    return dropping.slots(COUNT_E, ROOM, "rooms")


def drawn_fates():
    return dropping.lost_assignments(LOST, "fates")


def drawn_matrix():
    return dropping.loss_matrix(CE, ["0.5", "1"], ["1", "2"], "matrix")


def bars(figure, hatched=False, dotted=False):
    """(lower end, height) of the bars that are hatched, dotted, or neither, by expert."""
    return [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches
            if bool(bar.get_hatch()) == hatched and (bar.get_linestyle() == ":") == dotted]


def test_rooms_are_filled_overflow_or_stay_empty():
    # 5, 2 and 3 want 3 places: 3, 2 and 3 are kept, 2, 0 and 0 dropped, and 0, 1 and 0 places stay empty
    figure = drawn_rooms()
    assert bars(figure) == [(0, 3), (0, 2), (0, 3)]
    assert bars(figure, hatched=True) == [(3, 2), (2, 0), (3, 0)]
    assert bars(figure, dotted=True) == [(3, 0), (2, 1), (3, 0)]


def test_rooms_are_labelled_with_what_is_kept_dropped_and_empty():
    texts = [text.get_text() for text in drawn_rooms().axes[0].texts]
    assert texts == ["2\ndropped", "3", "1\nempty", "2", "3", "capacity 3"]


def test_fates_have_a_panel_each_with_its_numbers():
    figure = drawn_fates()
    panels = [axis for axis in figure.axes if axis.images]
    assert len(panels) == 3 and len(figure.axes) == 4 and not figure.axes[3].axison
    for panel, lost_BS in zip(panels, LOST.values(), strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), lost_BS)
        assert panel.images[0].get_clim() == (0, 2)
    assert [panel.get_title() for panel in panels] == ["one: 3 lost all", "two: 0 lost all", "three: 0 lost all"]


def test_fates_grow_darker_with_what_is_lost():
    image, greys = drawn_fates().axes[0].images[0], []
    for lost in (0, 1, 2):
        red, green, blue, _ = image.cmap(image.norm(lost))
        greys.append(0.299 * red + 0.587 * green + 0.114 * blue)
    assert greys == sorted(greys, reverse=True) and min(-np.diff(greys)) > 0.15


def test_fates_name_their_colours():
    legend = drawn_fates().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["lost nothing", "lost one of two", "lost both"]
    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == [
        shade.lower() for shade in palette.LOST]


def test_the_matrix_says_mean_and_half_the_range_of_seeds_and_stars_the_best_of_a_column():
    texts = [text.get_text() for text in drawn_matrix().axes[0].texts]
    assert texts == ["3.10\n±0.10", "2.10 *\n±0.10", "2.60 *\n±0.10", "2.20\n±0.00"]
    np.testing.assert_allclose(drawn_matrix().axes[0].images[0].get_array(), [[3.1, 2.1], [2.6, 2.2]])


def test_the_matrix_frames_the_same_capacity():
    # trained with 0.5 and 1, evaluated with 1 and 2: the second row and first column have 1 in both
    frames = [patch for patch in drawn_matrix().axes[0].patches if isinstance(patch, Rectangle)]
    assert [(round(p.get_x() + p.get_width() / 2), round(p.get_y() + p.get_height() / 2)) for p in frames] == [(0, 1)]


@pytest.mark.parametrize("draw", [drawn_rooms, drawn_fates, drawn_matrix])
def test_the_same_figure_gives_the_same_bytes(draw):
    first, second = io.BytesIO(), io.BytesIO()
    for file in (first, second):
        draw().savefig(file, format="png", metadata={"Software": None})
    assert first.getvalue() == second.getvalue()
