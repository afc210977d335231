"""Pictures of sparse models: every square has the colour of its use, every bar and mark the length of its number."""

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from minimoe.plots import figures, palette
from minimoe.plots.lessons import sparse_models

T, D, E, F = 2, 3, 4, 5
MOE, DENSE = np.zeros((T, 3, D, E * F), bool), np.ones((T, 3, D, F), bool)
MOE[0, :, :, :F] = MOE[0, :, :, 2 * F:3 * F] = True  # token 0 uses experts 0 and 2
MOE[1, :, :, 3 * F:] = True  # token 1 uses expert 3
BLOCKS = {"dense": (DENSE, 1), "MoE": (MOE, E)}

FIGURES = {
    "weights": lambda: sparse_models.used_weights(BLOCKS, ["a", "b"], "title"),
    "twins": lambda: sparse_models.twins({"MoE": (1e6, 3e6), "dense": (4e6, 0)},
                                         {"MoE": {"head": 1e6, "experts": 2e6}, "dense": {"dense": 8e6}}, "title"),
    "dots": lambda: sparse_models.dots(["a", "b", "c"], {"x": [1, 2, np.nan], "y": [3, 1, 4]}, ["p", "q", "r"],
                                       "times", "title"),
}
each_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


@each_figure
def test_each_is_a_figure_with_its_title_that_gives_the_same_bytes_twice(draw, tmp_path):
    figure = draw()
    assert type(figure) is Figure and figure.get_suptitle() == "title"
    for name in ("first.png", "second.png"):
        figures.save(draw(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def squares(axis):
    """The colours of a panel, [rows, columns] of hex."""
    mesh = axis.collections[0]
    rgb = np.asarray(mesh.get_array(), float)
    return np.array([[colors.to_hex(square) for square in row] for row in rgb])


def test_a_weight_is_coloured_by_its_expert_where_its_token_uses_it():
    figure = FIGURES["weights"]()
    moe = [axis for axis in figure.axes if len(axis.get_xticks())]
    assert len(figure.axes) == T * len(BLOCKS) and len(moe) == T
    for t, (axis, chosen) in enumerate(zip(moe, ((0, 2), (3,)), strict=True)):
        found = squares(axis)
        for matrix in range(3):
            for d in range(D):
                for unit in range(E * F):
                    e = unit // F
                    expected = palette.colour(e).lower() if e in chosen else palette.IDLE
                    assert found[(matrix + 1) * (D + 1) + d, unit] == expected, (t, matrix, d, unit)
        bold = [e for e, label in enumerate(axis.get_xticklabels()) if label.get_fontweight() == "bold"]
        assert bold == list(chosen) and [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2", "3"]


def test_each_matrix_is_drawn_in_its_own_place():
    one = np.zeros((1, 3, D, E * F), bool)
    one[0, 2, 1, 7] = True  # of the third matrix, row 1, unit 7, which is expert 1's
    found = squares(sparse_models.used_weights({"MoE": (one, E)}, ["a"], "title").axes[0])
    assert np.argwhere(found == palette.colour(1).lower()).tolist() == [[3 * (D + 1) + 1, 7]]


def test_the_router_stands_over_each_expert_and_a_dense_block_has_none():
    dense, moe = (squares(axis) for axis in FIGURES["weights"]().axes[:2])
    columns = [2, 7, 12, 17]  # the middle of five
    assert (moe[:D, columns] == palette.SHARED).all()
    assert (np.delete(moe[:D], columns, axis=1) == palette.WHITE).all()
    assert (dense[:D] == palette.WHITE).all()
    for matrix in range(3):
        assert (dense[(matrix + 1) * (D + 1):][:D] == palette.SHARED).all()


def test_twins_have_bars_of_their_parameters_and_of_their_parts():
    left, right = FIGURES["twins"]().axes
    assert sorted((bar.get_x(), bar.get_width()) for bar in left.patches) == [(0, 1), (0, 4), (1, 3), (4, 0)]
    found = {colors.to_hex(bar.get_facecolor()): (bar.get_x(), bar.get_width()) for bar in right.patches}
    shade = {part: palette.PARTS[part].lower() for part in ("experts", "head", "dense")}
    assert found == {shade["experts"]: (0, 2), shade["head"]: (2, 1), shade["dense"]: (0, 8)}
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["experts", "dense", "head"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["MoE", "dense"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first on top


def test_dots_stand_at_their_numbers_and_the_line_joins_the_outermost():
    figure = FIGURES["dots"]()
    axis = figure.axes[0]
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "times"
    first, second = axis.lines
    np.testing.assert_array_equal(first.get_xdata(), [1, 2, np.nan])
    np.testing.assert_array_equal(second.get_xdata(), [3, 1, 4])
    ends = [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()]
    assert ends == [[1, 3], [1, 2], [4, 4]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]


@pytest.mark.parametrize(("largest", "shown"), [(20, ["1", "2", "5", "10", "20"]), (1000, ["1", "10", "100", "1000"])])
def test_the_ticks_of_dots_are_plain_numbers(largest, shown):
    figure = sparse_models.dots(["a"], {"x": [1], "y": [largest]}, [""], "times", "title")
    figure.canvas.draw()
    axis = figure.axes[0]
    low, high = axis.get_xlim()
    inside = [label.get_text() for at, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
              if low <= at <= high]
    assert inside == shown


def test_more_series_than_signs_are_refused():
    with pytest.raises(ValueError, match="series = 4: must be 1 to 3"):
        sparse_models.dots(["a"], dict.fromkeys("wxyz", [1]), [""], "times", "title")
