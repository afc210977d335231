"""The picture of losses against training FLOPs and at three budgets: who is drawn, where, how large, and named how."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from minimoe import cost
from minimoe.experiments import effective_size
from minimoe.plots import figures, pareto

ORANGE, BLUE = "#d55e00", "#0072b2"


def entry(name, budget, steps, total, flops, *ces):
    active = 200_000 if name.startswith("MoE") else total
    return effective_size.Entry(name, budget, steps, cost.Parameters(total, active, 0, 0), flops, 1.0, np.array(ces))


HALF = entry("dense, half of active", "steps", 600, 100_000, 1e9, 3.0, 3.2, 3.25)
ACTIVE = entry("dense, same active", "steps", 600, 200_000, 2e9, 2.5, 2.55, 2.75)
TOTAL = entry("dense, same total", "steps", 600, 800_000, 8e9, 2.0, 2.1, 2.05)
FEW = entry("MoE, 2 of 4", "steps", 600, 400_000, 2e9, 2.4, 2.5, 2.75)
MAIN = entry("MoE, 2 of 8", "steps", 600, 800_000, 2.1e9, 2.3, 2.2, 2.21)
LONGER = entry("dense, same active", "time", 1_500, 200_000, 5e9, 2.2, 2.3, 2.21)
SHORTER = entry("dense, same total", "FLOPs", 158, 800_000, 2.1e9, 2.9, 2.8, 2.83)
ENTRIES = [HALF, TOTAL, ACTIVE, FEW, MAIN, SHORTER, LONGER]


def drawn(entries=ENTRIES):
    return pareto.pareto(entries, "MoE, 2 of 8", "title")


def markers(figure):
    """Of the left panel: the MoEs' and the dense models'."""
    return [marker for marker in figure.axes[0].collections if isinstance(marker, PathCollection)]


def means(*entries):
    return [(e.flops, sum(e.ce) / 3) for e in entries]


def test_at_equal_steps_each_model_has_a_marker_at_its_flops_and_mean_loss():
    moes, dense = markers(drawn())
    np.testing.assert_allclose(moes.get_offsets(), means(FEW, MAIN))
    np.testing.assert_allclose(dense.get_offsets(), means(HALF, ACTIVE, TOTAL))  # in the order of their FLOPs


def test_the_area_grows_with_the_total_parameters_and_with_nothing_else():
    moes, dense = (marker.get_sizes() for marker in markers(drawn()))
    assert moes[1] == dense[2]  # both have 800,000
    # 100, 200, 400 and 800 thousand: each step is twice the one before it
    np.testing.assert_allclose(np.diff([dense[0], dense[1], moes[0], moes[1]]) / (dense[1] - dense[0]), [1, 2, 4])


def test_moes_are_rings_that_can_be_seen_through_one_another():
    moes, dense = markers(drawn())
    assert len(moes.get_facecolor()) == 0 and to_hex(moes.get_edgecolor()[0]) == ORANGE
    assert to_hex(dense.get_facecolor()[0]) == to_hex(dense.get_edgecolor()[0]) == BLUE
    assert moes.get_paths()[0].vertices.shape != dense.get_paths()[0].vertices.shape  # not by colour alone


def test_a_line_reaches_over_the_losses_of_all_seeds():
    bars = [segment.tolist() for bar in drawn().axes[0].collections if not isinstance(bar, PathCollection)
            for segment in bar.get_segments()]
    np.testing.assert_allclose(bars, [[(e.flops, min(e.ce)), (e.flops, max(e.ce))]
                                      for e in (FEW, MAIN, HALF, ACTIVE, TOTAL)])


def test_a_line_joins_the_dense_models_alone():
    joined = [line for line in drawn().axes[0].lines if line.get_linestyle() == "-"]
    assert len(joined) == 1
    np.testing.assert_allclose(joined[0].get_xydata(), means(HALF, ACTIVE, TOTAL))


def test_names_and_sizes_stand_beside_their_markers():
    words = {text.get_text(): text.xy for text in drawn().axes[0].texts}
    assert words.keys() == {"MoE, 2 of 4\n400 k", "MoE, 2 of 8\n800 k", "half of active\n100 k", "same active\n200 k",
                            "same total\n800 k"}
    np.testing.assert_allclose(words["MoE, 2 of 8\n800 k"], *means(MAIN))
    np.testing.assert_allclose(words["half of active\n100 k"], *means(HALF))


def test_names_of_moes_stand_in_the_order_of_their_losses_and_do_not_meet():
    many = [MAIN._replace(name=f"MoE, 2 of {n}", ce=np.array([loss] * 2)) for n, loss in
            ((8, 2.01), (16, 2.0), (32, 2.02))]
    places = {text.get_text().split("\n")[0]: text.xyann[1] for text in drawn(many).axes[0].texts}
    assert sorted(places, key=places.get) == ["MoE, 2 of 16", "MoE, 2 of 8", "MoE, 2 of 32"]
    assert np.diff(sorted(places.values())).min() > 0.1


def right(entries=ENTRIES):
    return drawn(entries).axes[1]


def test_the_moe_is_a_line_over_all_budgets_with_the_range_of_its_seeds():
    axis = right()
    line = next(line for line in axis.lines if line.get_label() == "MoE, 2 of 8")
    assert set(line.get_ydata()) == {MAIN.ce.mean()} and to_hex(line.get_color()) == ORANGE
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    np.testing.assert_allclose((band.y0, band.y1), (2.2, 2.3))


@pytest.mark.parametrize(("e", "place"), [(ACTIVE, 0), (TOTAL, 0), (SHORTER, 1), (LONGER, 2)])
def test_a_dense_model_has_a_dot_a_seed_a_bar_at_the_mean_and_its_steps_at_each_budget(e, place):
    axis, mark = right(), "s" if e.name == "dense, same active" else "D"
    dots = [line for line in axis.lines if line.get_marker() == mark and round(line.get_xdata()[0]) == place]
    assert [sorted(line.get_ydata()) for line in dots] == [sorted(e.ce)]
    bars = [line for line in axis.lines if line.get_marker() == "None" and len(set(line.get_ydata())) == 1
            and abs(np.mean(line.get_xdata()) - dots[0].get_xdata()[0]) < 1e-9]
    np.testing.assert_allclose([line.get_ydata()[0] for line in bars], [sum(e.ce) / 3])
    above = (dots[0].get_xdata()[0], max(e.ce))
    assert [text.get_text() for text in axis.texts if text.xy == above] == [f"{e.steps:,}"]


def test_budgets_are_named_and_each_dense_model_once():
    axis = right()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["equal\nsteps", "equal\nFLOPs", "equal\ntime"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["MoE, 2 of 8", "dense, same active",
                                                                           "dense, same total"]


@pytest.mark.parametrize("entries", [ENTRIES, [MAIN], [MAIN._replace(ce=np.array([2.0])),
                                                      TOTAL._replace(ce=np.array([2.0]))]])
def test_the_axes_are_finite_and_hold_all_that_is_drawn(entries):
    figure = drawn(entries)
    (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    assert np.isfinite([left, right, bottom, top]).all()
    for e in entries:
        assert bottom < e.ce.min() <= e.ce.max() < top
        assert e.budget != "steps" or 0 < left < e.flops < right


def test_the_axes_say_what_they_show_and_in_which_unit():
    figure = drawn()
    axis = figure.axes[0]
    assert axis.get_xlabel().startswith("training FLOPs") and axis.get_xscale() == "log"
    assert {a.get_ylabel() for a in figure.axes} == {"validation loss (nats per token)"}
    assert figure.get_suptitle() == "title"
    assert "area: total parameters" in axis.get_title() and "steps" in figure.axes[1].get_title()


def test_ticks_are_round_numbers_of_flops_in_words():
    axis = drawn().axes[0]
    left, right = axis.get_xlim()
    shown = {axis.xaxis.get_major_formatter()(tick, 0) for tick in axis.get_xticks() if left <= tick <= right}
    assert {"1 G", "2 G", "5 G"} <= shown


def test_the_same_figure_is_the_same_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        figures.save(drawn(), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
