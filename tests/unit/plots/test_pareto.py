"""Losses against training FLOPs and at three budgets: what is drawn where, how large, and named how."""

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from minimoe.plots import palette, pareto
from tests.unit.plots.pictures import ACTIVE, ENTRIES, FEW, HALF, LONGER, MAIN, SHORTER, TOTAL, drawn, entry, words


def means(*entries):
    return [(e.flops, e.ce.mean()) for e in entries]


def test_at_equal_steps_a_marker_stands_at_the_flops_and_mean_loss_and_its_area_is_the_size():
    axis = drawn("pareto")[0]
    moes, dense = (marker for marker in axis.collections if isinstance(marker, PathCollection))
    np.testing.assert_allclose(moes.get_offsets(), means(FEW, MAIN))
    np.testing.assert_allclose(dense.get_offsets(), means(HALF, ACTIVE, TOTAL))  # in the order of their FLOPs
    (few, main), (half, active, total) = moes.get_sizes(), dense.get_sizes()
    assert main == total  # both have 800,000; 100, 200, 400 and 800 thousand are each twice the one before
    np.testing.assert_allclose(np.diff([half, active, few, main]) / (active - half), [1, 2, 4])
    assert len(moes.get_facecolor()) == 0 and to_hex(moes.get_edgecolor()[0]).upper() == palette.MOE  # rings
    assert moes.get_paths()[0].vertices.shape != dense.get_paths()[0].vertices.shape  # not by color alone
    bars = [segment.tolist() for bar in axis.collections if not isinstance(bar, PathCollection)
            for segment in bar.get_segments()]
    np.testing.assert_allclose(bars, [[(e.flops, min(e.ce)), (e.flops, max(e.ce))]
                                      for e in (FEW, MAIN, HALF, ACTIVE, TOTAL)])
    [joined] = [line for line in axis.lines if line.get_linestyle() == "-"]  # the dense models alone
    np.testing.assert_allclose(joined.get_xydata(), means(HALF, ACTIVE, TOTAL))


def test_names_and_sizes_stand_next_to_their_markers_and_do_not_meet():
    assert {text.get_text(): text.xy for text in drawn("pareto")[0].texts} == {
        f"{name}\n{size} k": (e.flops, pytest.approx(e.ce.mean())) for name, size, e in (
            ("MoE, 2 of 4", 400, FEW), ("MoE, 2 of 8", 800, MAIN), ("half of active", 100, HALF),
            ("same active", 200, ACTIVE), ("same total", 800, TOTAL))}
    many = [entry(f"MoE, 2 of {n}", "steps", 600, 1e6, 2e9, loss) for n, loss in ((8, 2.01), (16, 2.0), (32, 2.02))]
    places = {text.get_text().split("\n")[0]: text.xyann[1] for text in pareto.pareto(
        many, "MoE, 2 of 8", "title").axes[0].texts}
    assert sorted(places, key=places.get) == ["MoE, 2 of 16", "MoE, 2 of 8", "MoE, 2 of 32"]  # by their losses
    assert np.diff(sorted(places.values())).min() > 0.1


def test_at_each_budget_the_moe_is_a_line_and_a_dense_model_a_dot_per_seed_with_its_mean_and_steps():
    axis = drawn("pareto")[1]
    line = next(line for line in axis.lines if line.get_label() == "MoE, 2 of 8")
    band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
    assert set(line.get_ydata()) == {MAIN.ce.mean()} and (band.y0, band.y1) == pytest.approx((2.2, 2.3))
    for e, place in ((ACTIVE, 0), (TOTAL, 0), (SHORTER, 1), (LONGER, 2)):
        mark = "s" if e.name == "dense, same active" else "D"
        [dots] = [line for line in axis.lines if line.get_marker() == mark and round(line.get_xdata()[0]) == place]
        [bar] = [line for line in axis.lines if line.get_marker() == "None" and len(set(line.get_ydata())) == 1
                 and abs(np.mean(line.get_xdata()) - dots.get_xdata()[0]) < 1e-9]
        assert list(dots.get_ydata()) == list(e.ce) and bar.get_ydata()[0] == pytest.approx(e.ce.mean())
        above = (dots.get_xdata()[0], max(e.ce))
        assert [text.get_text() for text in axis.texts if text.xy == above] == [f"{e.steps:,}"]
    assert words(axis.get_xticklabels()) == ["equal\nsteps", "equal\nFLOPs", "equal\ntime"]
    assert words(axis.get_legend().get_texts()) == ["MoE, 2 of 8", "dense, same active", "dense, same total"]


@pytest.mark.parametrize("entries", [ENTRIES, [MAIN]], ids=["all", "one"])
def test_the_axis_holds_all_that_is_drawn(entries):
    axis = pareto.pareto(entries, "MoE, 2 of 8", "title").axes[0]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for e in entries:
        assert bottom < e.ce.min() <= e.ce.max() < top and (e.budget != "steps" or left < e.flops < right)
