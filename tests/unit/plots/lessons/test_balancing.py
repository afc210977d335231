"""Pictures of load balancing: each shows the numbers that it was given, and the same numbers give the same bytes."""

import io

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from minimoe.plots import palette
from minimoe.plots.lessons import load_balancing

STEPS = np.array([5, 10, 15])
# two seeds, three records, three experts
LOAD = np.array([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.7, 0.28, 0.02]],
                 [[0.2, 0.4, 0.4], [0.1, 0.4, 0.5], [0.05, 0.35, 0.6]]])
RESULTS = {"no loss": (np.array([3.0, 3.2]), np.array([2.0, 2.2])),
           "balance": (np.array([1.1, 1.3]), np.array([1.9, 2.3]))}

FIGURES = {
    "bands": lambda: load_balancing.load_bands(STEPS, {"one": LOAD, "two": LOAD[::-1]}, "title"),
    "loss": lambda: load_balancing.load_against_loss(RESULTS, "title"),
    "text": lambda: load_balancing.text_by_expert({"local": LOAD, "global": LOAD[::-1]}, ("a", "b", "c"), "title"),
}
each_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


@each_figure
def test_a_figure_with_its_title_as_wide_as_a_page(draw):
    figure = draw()
    assert type(figure) is Figure and figure.get_suptitle() == "title" and 7 <= figure.get_figwidth() <= 8


@each_figure
def test_the_same_numbers_give_the_same_bytes(draw):
    assert png(draw()) == png(draw())


def test_a_band_is_as_high_as_the_load():
    axes = FIGURES["bands"]().axes
    assert len(axes) == 4
    for axis, load in zip(axes, (LOAD[0], LOAD[1], LOAD[1], LOAD[0]), strict=True):
        assert len(axis.collections) == 3
        for e, band in enumerate(axis.collections):
            points = band.get_paths()[0].vertices
            for step, share in zip(STEPS, load[:, e], strict=True):
                y = points[points[:, 0] == step, 1]
                assert np.isclose(y.max() - y.min(), share)
            assert colors.same_color(band.get_facecolor()[0], palette.colour(e))


def test_bands_stand_on_each_other_up_to_one():
    for axis in FIGURES["bands"]().axes:
        ends = [(y.min(), y.max()) for y in
                (points[points[:, 0] == 15, 1] for points in (b.get_paths()[0].vertices for b in axis.collections))]
        assert np.allclose([low for low, _ in ends], [0] + [high for _, high in ends[:-1]])
        assert np.isclose(ends[-1][1], 1)


def test_bands_that_can_be_seen_at_the_end_have_their_number():
    numbers = [[text.get_text() for text in axis.texts] for axis in FIGURES["bands"]().axes]
    assert numbers == [["0", "1"], ["1", "2"], ["1", "2"], ["0", "1"]]  # 2 % and 5 % are too thin


def test_rows_have_labels_and_columns_seeds():
    for name in ("bands", "text"):
        axes = [axis for axis in FIGURES[name]().axes if axis.get_label() != "<colorbar>"]
        assert [axis.get_title() for axis in axes] == ["seed 0", "seed 1", "", ""]
        labels = ("one", "two") if name == "bands" else ("local", "global")
        assert [axis.get_ylabel() for axis in axes] == [labels[0], "", labels[1], ""]


def test_every_seed_has_a_mark_and_their_mean_a_larger_one():
    axis = FIGURES["loss"]().axes[0]
    marks = [line for line in axis.lines if line.get_marker() not in ("None", "")]
    for seeds, mean, (busiest, loss) in zip(marks[::2], marks[1::2], RESULTS.values(), strict=True):
        assert np.array_equal(seeds.get_xdata(), busiest) and np.array_equal(seeds.get_ydata(), loss)
        assert np.allclose(mean.get_xdata(), busiest.mean()) and np.allclose(mean.get_ydata(), loss.mean())
        assert mean.get_markersize() > seeds.get_markersize() and mean.get_marker() == seeds.get_marker()
    assert [text.get_text() for text in FIGURES["loss"]().legends[0].get_texts()] == list(RESULTS)
    assert "nats" in axis.get_ylabel() and "even load" in axis.get_xlabel()


def test_models_differ_in_sign_and_colour():
    many = {str(i): (np.array([1.0]), np.array([i])) for i in range(9)}
    marks = [line for line in load_balancing.load_against_loss(many, "").axes[0].lines if line.get_marker() != "None"]
    assert len({(line.get_marker(), line.get_color()) for line in marks}) == 9


def test_an_even_load_is_where_it_is_said_to_be():
    axis = load_balancing.load_against_loss(RESULTS, "title", even=1.5).axes[0]
    assert any(list(line.get_xdata()) == [1.5, 1.5] and line.get_linestyle() == ":" for line in axis.lines)


def test_a_map_shows_the_load_of_each_domain_and_writes_it_down():
    axes = [axis for axis in FIGURES["text"]().axes if axis.get_label() != "<colorbar>"]
    for axis, load in zip(axes, (LOAD[0], LOAD[1], LOAD[1], LOAD[0]), strict=True):
        assert np.array_equal(axis.images[0].get_array(), load)
        assert axis.images[0].get_clim() == (0, 1)
        assert [text.get_text() for text in axis.texts] == [f"{share:.0%}" for share in load.ravel()]
        assert [text.get_position() for text in axis.texts] == [(e, d) for d in range(3) for e in range(3)]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b", "c"]
