"""Pictures of the lessons: what is drawn where, in which color, and which words say it."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from minimoe.plots import palette
from minimoe.plots.lessons import choices, downsides, gradients, paths, sparse_models
from tests.unit.plots import pictures
from tests.unit.plots.pictures import drawn, words


def gray(image, value):
    return np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))


def middles(patches):
    """(x, y) of the middles of rectangles."""
    return [(round(p.get_x() + p.get_width() / 2, 9), round(p.get_y() + p.get_height() / 2, 9)) for p in patches]


def squares(axis):
    """The colors of a mesh, [rows, columns] of hex."""
    return np.array([[to_hex(square) for square in row] for row in np.asarray(axis.collections[0].get_array(), float)])


def test_a_weight_has_its_experts_color_where_its_token_uses_it_and_the_router_stands_above():
    D, E, F = pictures.D, pictures.E, pictures.F
    axes = drawn("used weights")
    for t, chosen in enumerate(((0, 2), (3,))):
        dense, moe = (squares(axis) for axis in axes[2 * t:2 * t + 2])
        expected = np.repeat([palette.color(e).lower() if e in chosen else palette.IDLE for e in range(E)], F)
        for matrix in range(1, 4):
            rows = slice(matrix * (D + 1), matrix * (D + 1) + D)
            assert (moe[rows] == expected).all() and (dense[rows] == palette.SHARED).all()
        assert (moe[:D, [2, 7, 12, 17]] == palette.SHARED).all()  # the middles of five columns each
        assert (moe[:D] == palette.SHARED).sum() == 4 * D and (dense[:D] == palette.WHITE).all()
        numbers = axes[2 * t + 1].get_xticklabels()
        assert [e for e, label in enumerate(numbers) if label.get_fontweight() == "bold"] == list(chosen)
    one = np.zeros((1, 3, D, E * F), bool)
    one[0, 2, 1, 7] = True  # of the third matrix, row 1, unit 7, which is expert 1's
    found = squares(sparse_models.used_weights({"MoE": (one, E)}, ["a"], "title").axes[0])
    assert np.argwhere(found == palette.color(1).lower()).tolist() == [[3 * (D + 1) + 1, 7]]


def test_twins_and_dots():
    left, right = drawn("twins")
    assert sorted(bar.get_bbox().bounds[::2] for bar in left.patches) == [(0, 1), (0, 4), (1, 3), (4, 0)]
    assert {to_hex(bar.get_facecolor()).upper(): bar.get_bbox().bounds[::2] for bar in right.patches} == {
        palette.PARTS["experts"]: (0, 2), palette.PARTS["head"]: (2, 1), palette.PARTS["dense"]: (0, 8)}
    assert words(right.get_legend().get_texts()) == ["experts", "dense FFN", "head"]
    [axis] = drawn("dots")  # a line joins the outermost
    assert [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()] == [[1, 3], [1, 2], [4, 4]]
    with pytest.raises(ValueError, match="series = 4: must be 1 to 3"):
        sparse_models.dots(["a"], dict.fromkeys("wxyz", [1]), [""], "times", "title")


def test_a_bar_names_the_chosen_experts_and_a_queue_is_cut_at_the_capacity():
    [axis] = drawn("probabilities")
    assert words(axis.texts) == ["0", "2", "1", "2"] and words(axis.child_axes[0].get_yticklabels()) == [
        "to 0 and 2", "to 2 and 1"]
    assert [bar.get_alpha() == 1 for bar in axis.patches] == [True, False, True, False, True, True]
    [axis] = drawn("queues")  # two slots each: c is the third at expert 0, expert 1 has two empty slots, 2 has one
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0.5, 0): "a", (1.5, 0): "b", (2.5, 0): "c", (0.5, 2): "b"}
    boxes = list(zip(middles(axis.patches), axis.patches, strict=True))
    assert [place for place, box in boxes if box.get_hatch()] == [(2.5, 0)]
    assert [place for place, box in boxes if box.get_linestyle() == ":"] == [(0.5, 1), (1.5, 1), (1.5, 2)]
    assert axis.lines[0].get_xdata()[0] == 2


def test_gradients_come_back_wherever_numbers_go_forward_but_not_through_the_choice():
    [axis] = drawn("gradient map")

    def box_at(place):
        return min(gradients.BOXES, key=lambda name: max(
            abs(place[0] - gradients.BOXES[name][0]) - gradients.WIDTH / 2,
            abs(place[1] - gradients.BOXES[name][1]) - gradients.HEIGHT / 2))

    arrows = [(to_hex(text.arrow_patch.get_edgecolor()), box_at(text.xyann), box_at(text.xy)) for text in axis.texts
              if getattr(text, "arrow_patch", None)]
    back = {(head, tail) for shade, tail, head in arrows if shade == palette.BACKWARD.lower()}
    # the five steps of layer.moe_forward: the choice is made from p, and says whose gates and whose rows
    assert back == {("x", "scores"), ("scores", "softmax"), ("softmax", "gates"), ("gates", "combine"),
                    ("x", "dispatch"), ("dispatch", "experts"), ("experts", "combine"), ("combine", "loss")}
    assert {(tail, head) for shade, tail, head in arrows if shade == palette.FORWARD} == back | {
        ("softmax", "choice"), ("choice", "gates"), ("choice", "dispatch")}
    assert {name for _, _, name in [*gradients.BOXES.values(), *gradients.WAYS]} <= set(words(axis.texts))


def test_a_cell_says_its_gradient_has_the_color_of_its_root_and_a_frame_if_it_was_chosen():
    # the largest is 2: two digits;  the largest is 0.02: 1 - floor(log10 0.02) = 3 digits
    raw, balance = drawn("score gradients")
    assert words(raw.texts) == ["-0.50", "0", "+0.50", "0", "+2.00", "-2.00"]
    assert words(balance.texts) == ["-0.005", "0", "+0.005", "0", "+0.020", "-0.020"]
    assert middles(raw.patches) == [(0, 0), (2, 0), (1, 1), (2, 1)]
    assert raw.images[0].get_clim() == pytest.approx((-2 * 2 ** 0.5, 2 * 2 ** 0.5))  # twice the largest root
    dead = gradients.score_gradients({"dead": np.zeros((2, 3))}, pictures.CHOSEN_TE, "ab", "title")
    assert words(dead.axes[0].texts) == ["0"] * 6


def test_errors_flips_and_curves():
    assert np.less(*reversed(drawn("errors")[0].get_xlim())) and np.less(*reversed(drawn("flips")[0].get_xlim()))
    [axis] = drawn("flips")
    crosses, circles = axis.lines
    assert (crosses.get_ydata().tolist(), circles.get_ydata().tolist()) == ([1, 10], [1e-4, 1e-6])
    assert [(text.get_position()[0], text.get_text()) for text in axis.texts] == [(h, "1 of 2\nflipped")
                                                                                 for h in (0.1, 0.01)]
    gates, loss = drawn("turned score")  # the loss breaks where the choice changes
    assert words(gates.get_legend().get_texts()) == ["expert 0", "expert 1", "expert 2"]  # the last is never chosen
    assert [list(line.get_xdata()) for line in loss.lines] == [[10, 20], [30], [30, 30]]


def test_rows_are_models_and_columns_seeds():
    for name, rows in (("load bands", ["one", "two"]), ("text by expert", ["local", "global"])):
        axes = drawn(name)
        assert [axis.get_title() for axis in axes] == ["seed 0", "seed 1", "", ""]
        assert [axis.get_ylabel() for axis in axes] == [rows[0], "", rows[1], ""]
    # bands that can be seen at the end have their number; 2 % and 5 % are too thin
    assert [words(axis.texts) for axis in drawn("load bands")] == [["0", "1"], ["1", "2"], ["1", "2"], ["0", "1"]]
    for axis, load in zip(drawn("text by expert"), pictures.LOAD[[0, 1, 1, 0]], strict=True):
        assert np.array_equal(axis.images[0].get_array(), load) and axis.images[0].get_clim() == (0, 1)
        assert words(axis.texts) == [f"{share:.0%}" for share in load.ravel()]


def test_a_line_joins_the_runs_of_a_seed_and_names_stand_where_lines_end():
    above, below = drawn("remedies")
    assert [line.get_ydata().tolist() for line in above.lines[:2]] == [[3.0, 1.1], [3.2, 1.3]]
    assert [line.get_ydata().tolist() for line in below.lines] == [[2.0, 1.9], [2.2, 2.3]]
    assert words(below.get_xticklabels()) == ["no\nloss", "even"]
    # their means over the last eight steps, here all three: 14.5 / 6, and 1 more
    assert [(text.get_text(), text.xy[1]) for text in drawn("busiest experts")[0].texts] == [
        ("a", pytest.approx(14.5 / 6)), ("b", pytest.approx(20.5 / 6))]
    # experts 0, 1, 2 end with 0.05, 0.35, 0.6, and their names have even distances
    assert [(text.get_text(), text.xyann[1]) for text in drawn("biases")[1].texts] == [
        ("expert 0", 0.05), ("expert 1", pytest.approx(0.325)), ("expert 2", 0.6)]
    heads = [text.xy for text in drawn("pushes")[1].texts]
    assert heads == [(0, -0.5), (1, 0.1), (2, 0.4)]


def test_dropping():
    # 5, 2 and 3 want 3 slots: 3, 2 and 3 are kept, 2, 0 and 0 dropped, and 0, 1 and 0 slots stay empty
    [axis] = drawn("slots")
    bars = [[bar.get_bbox().bounds[1::2] for bar in axis.patches[kind::3]] for kind in range(3)]
    assert bars == [[(0, 3), (0, 2), (0, 3)], [(3, 2), (2, 0), (3, 0)], [(3, 0), (2, 1), (3, 0)]]
    assert words(axis.texts) == ["2\ndropped", "3", "1\nempty", "2", "3", "capacity 3"]
    *axes, empty = drawn("lost")
    assert [axis.get_title() for axis in axes] == [
        f"{name}: {n} tokens lost both" for name, n in (("one", 3), ("two", 0), ("three", 0))]
    np.testing.assert_array_equal(axes[0].images[0].get_array(), pictures.LOST["one"])
    assert max(np.diff([gray(axes[0].images[0], lost) for lost in (0, 1, 2)])) < -0.15 and not empty.axison
    [axis] = drawn("loss matrix")  # mean and half the range; the best of a row has a star, the same capacity a frame
    assert words(axis.texts) == ["3.10\n±0.10", "2.10 *\n±0.10", "2.60 *\n±0.10", "2.20\n±0.00"]
    assert middles(axis.patches) == [(0, 1)]  # trained with 0.5 and 1, evaluated with 1 and 2


def test_races_gaps_and_sizes():
    steps, times = drawn("races")
    np.testing.assert_allclose(steps.lines[0].get_ydata(), [3.5, 2.25, 1.5])
    assert [line.get_xydata().tolist() for line in (steps.lines[1], times.lines[3])] == [[[30, 1.5]], [[60, 1.5]]]
    assert (steps.get_title(), times.get_title()) == ("equal steps", "equal time") and steps.get_ylim()[1] == 3.5
    [gaps] = drawn("gaps")
    assert words(gaps.child_axes[0].get_yticklabels()) == ["+0.010, 2 of 3", "-0.200, 3 of 3"]
    assert [gaps.lines[i].get_color() for i in (0, 2)] == [palette.MOE, palette.DENSE]
    # sizes at the ends of the family, though logarithms have rounded them
    assert words(drawn("effective sizes")[0].get_legend().get_texts())[2:] == [
        "x: worth 141", "y: below the line", "z: above it"]
    assert [line.get_marker() for line in drawn("effective sizes")[0].lines[-5::2]] == ["o", "", ""]
    assert [line.get_ydata().tolist() for line in drawn("seed lines")[0].lines] == [[3, 2], [4, 1], [3.5, 1.5]]


def test_streams_lie_side_by_side_at_both_ends():
    # shares: 0 to 0 a quarter, 0 to 1 a half, 1 to 1 a quarter.  At the left: 0->0 at 0, 0->1 at .25, 1->0 (empty) and
    # 1->1 at .75;  at the right: 0->0 at 0, 1->0 (empty) at .25, then those that arrive at 1: 0->1 at .25, 1->1 at .75
    share_EE, left_EE, right_EE = paths.streams(pictures.BEFORE_T, pictures.AFTER_T, 2)
    assert share_EE.tolist() == [[0.25, 0.5], [0, 0.25]]
    assert left_EE.tolist() == [[0, 0.25], [0.75, 0.75]] and right_EE.tolist() == [[0, 0.25], [0.25, 0.75]]
    [axis] = drawn("paths")
    for band, (left, right, high) in zip(axis.collections, (
            (0, 0, 0.25), (0.25, 0.25, 0.5), (0.75, 0.75, 0.25)), strict=True):
        vertices = band.get_paths()[0].vertices
        for x, y in ((vertices[:, 0].min(), left), (vertices[:, 0].max(), right)):
            ends = vertices[np.isclose(vertices[:, 0], x), 1]
            assert [ends.min(), ends.max()] == pytest.approx([y, y + high])
        assert to_hex(band.get_facecolor()[0]) == palette.GRAY_CC  # at most 4/3 of what chance gives
    assert [block.get_height() for block in axis.patches] == [0.75, 0.25, 0.25, 0.75]
    assert [text.get_position() for text in axis.texts] == [(0, 0.375), (0, 0.875), (1, 0.125), (1, 0.625)]
    same = paths.alluvial({"one": np.array([[0, 0, 1, 1]] * 2)}, 2, "title")  # 1/2 where chance gives 1/4
    assert [to_hex(band.get_facecolor()[0]).upper() for band in same.axes[0].collections] == [
        palette.color(0), palette.color(1)]  # of the expert that the stream leaves
    thin = paths.alluvial({"one": np.array([[0] * 39 + [1]])}, 8, "title")  # expert 1 has 1 of 40 tokens
    assert words(thin.axes[0].texts) == ["0"]


def test_a_choice_is_as_dark_as_its_weight_and_tokens_are_named_and_counted():
    first, *_, empty = drawn("weight maps")
    shown = first.images[0]
    np.testing.assert_array_equal(shown.get_array().filled(-1), [[0.7, -1], [0.3, 1], [-1, -1]])
    assert shown.get_clim() == (0, 1) and gray(shown, 0.1) > gray(shown, 0.5) > gray(shown, 1.0)
    assert words(first.get_xticklabels()) == ["a", "␣"] and words(first.texts) == ["1", "2", "0"] and not empty.axison
    [axis] = drawn("router losses")  # those that see the future last; means 2.1, 3.1 and 1.1, compared with gshard
    assert words(axis.get_yticklabels()) == ["gshard", "hash", "dense", "soft"]
    assert words(axis.child_axes[0].get_yticklabels())[::3] == ["2.100  +0.000", "1.100  -1.000"]
    changed = {"one": np.array([[False, True, False], [False, False, True]])}
    axis, *_ = choices.weight_maps({"one": pictures.WEIGHT_TE["one"]}, "a ", "title", changed, columns=1).axes
    assert middles(axis.patches) == [(0, 1), (1, 2)]


def test_an_moe_lies_between_two_dense_models_by_its_logarithm():
    [axis] = drawn("relative costs")

    def marks(marker, shade):
        return [point for line in axis.lines if (line.get_marker(), line.get_color()) == (marker, shade)
                for point in zip(*line.get_data(), strict=True)]

    # log(1/1) = 0;  log(8/4) / log(16/4) = 1/2;  log(32/2) / log(32/2) = 1;  means 4, 2, 1: log(2/4) / log(1/4) = 1/2
    np.testing.assert_allclose(marks("D", palette.MOE), [(0, 0), (0.5, 1), (1, 2), (0.5, 3)], atol=1e-12)
    # seeds 3 and 5 around 4, on the way to 1: log(3/4) / log(1/4) = 0.2075, log(5/4) / log(1/4) = -0.1610
    np.testing.assert_allclose(marks("|", palette.DENSE), [(0.2075, 3.28), (-0.1610, 3.28)], atol=1e-4)
    assert words(axis.child_axes[0].get_yticklabels()) == [
        "1 B | 1 B | 100 B", "4 | 8 | 16", "2 s | 32 s | 32 s", "4.000 | 2.000 | 1.000"]
    assert downsides.SIZES["D"] < min(downsides.SIZES["s"], downsides.SIZES["o"])  # what it lies on can be seen


def test_alarms_say_in_how_many_seeds_and_can_be_read():
    [axis] = drawn("alarms")
    assert words(axis.texts) == ["ok", "ok", "–", "ALARM 3/3", "ALARM 1/3", "ALARM 2/2"]
    assert [text.get_position() for text in axis.texts] == middles(axis.patches) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    faces = [palette.ALARMS[i] for i in (0, 0, 0, 2, 1, 2)]
    assert [to_hex(bar.get_facecolor()).lower() for bar in axis.patches] == [face.lower() for face in faces]
    assert [text.get_color() for text in axis.texts] == [palette.ink_on(face) for face in faces]


def test_machines():
    above, below = drawn("speeds")  # of each a whole line, the dashed one from there, and hollow marks
    assert [(line.get_linestyle(), line.get_xdata().tolist()) for line in above.lines[3:6]] == [
        ("-", [1, 2]), ("--", [2, 4]), ("None", [4])]
    # 100/40, 120/80, 320/100
    assert [line.get_ydata().tolist() for line in below.lines[:2]] == [[2.5], [2.5, 1.5, 3.2]]
    assert words(drawn("travel times")[0].texts) == ["fine, 600", "wide, 2,000"]
    [axis] = drawn("step times")  # a line joins the dense models alone
    assert [(line.get_xydata().tolist(), line.get_linestyle()) for line in axis.lines] == [
        ([[4, 100], [8, 200]], "-"), ([[4, 150]], "None")]
    assert {text.get_text(): text.xy for text in axis.texts} == pictures.MODELS


def test_a_film_says_of_each_place_what_became_of_it_and_a_masked_weight_is_blank():
    # masks 11/00, 10/10, 11/10, 11/01; 0 is none, 1 there since the start, 2 came earlier, 3 came now, 4 went now
    frames = [axis.images[0].get_array().tolist() for axis in drawn("film")[:4]]
    assert frames == [[[1, 1], [0, 0]], [[1, 4], [3, 0]], [[1, 3], [2, 0]], [[1, 2], [4, 3]]]
    blank = [np.isnan(np.ma.filled(axis.images[0].get_array(), np.nan)) for axis in drawn("masked weights")[:3]]
    assert np.array_equal(blank, [pictures.W_DF >= 2, pictures.W_DF <= 0, pictures.W_DF <= 2])
