"""Where assignments go: bands that add up, bars of their height, characters on the colors of their experts."""

from collections import Counter

import numpy as np
import pytest
from matplotlib import colors

from minimoe.plots import coloured_text, expert_load, palette
from tests.unit.plots.pictures import drawn, shares, words


def test_loads_over_time_are_bands_of_their_height_stacked_up_to_one():
    for layer, axis in enumerate(drawn("load over time")):
        ends = np.cumsum(np.insert(shares(3, 2, 3)[0, layer], 0, 0))  # at step 10
        for e, band in enumerate(axis.collections):
            points = band.get_paths()[0].vertices
            heights = points[points[:, 0] == 10, 1]
            np.testing.assert_allclose([heights.min(), heights.max()], ends[e:e + 2], atol=1e-12)
            assert colors.same_color(band.get_facecolor()[0], palette.color(e))
        assert axis.get_ylim() == (0, 1) and axis.get_ylabel().startswith(f"layer {layer}")
    # 0.02 is too thin for a number; 0.58 lies from 0.02 to 0.6, 0.4 from there to 1
    axis = expert_load.load_over_time(np.arange(2), np.array([[[0.02, 0.58, 0.4]]] * 2), "title").axes[0]
    assert [(text.get_text(), text.xy[1]) for text in axis.texts] == [("1", pytest.approx(0.31)),
                                                                    ("2", pytest.approx(0.8))]


@pytest.mark.parametrize("n_domains", [1, 4])
def test_loads_by_domain_are_bars_of_their_height_side_by_side_around_the_experts_number(n_domains):
    load, names = shares(n_domains, 2, 3), [f"_domain {d}" for d in range(n_domains)]
    loads = {"untrained": load[:, ::-1], "trained": load}
    axes = expert_load.load_by_domain(loads, names, "title").axes
    assert [axis.get_title() for axis in axes[:2]] == list(loads) and len({axis.get_ylim() for axis in axes}) == 1
    for layer, axis in enumerate(axes[1::2]):
        left, _, width, height = np.array([[bar.get_bbox().bounds for bar in bars] for bars in axis.containers]).T
        np.testing.assert_allclose(height.T, load[:, layer])
        np.testing.assert_allclose(np.diff(left, axis=1), width[:, 1:])
        np.testing.assert_allclose((left + width / 2).mean(axis=1), range(3), atol=1e-12)
        np.testing.assert_allclose([[bar.get_height() for bar in bars] for bars in axes[2 * layer].containers],
                                   load[:, 1 - layer])
        assert len({bars[0].get_hatch() for bars in axis.containers}) == n_domains  # not by color alone
    assert words(axes[1].get_legend().get_texts()) == names  # though matplotlib hides names that begin with "_"


def test_each_character_stands_on_the_color_of_its_expert_with_its_number_inside_of_the_picture():
    text = "ab\nc"  # the line break is a cell of its own
    axis = coloured_text.coloured_text([("one", text, [0, 1, 2, 0]), ("two", "d" * 40, [1] * 40)], 3, "title").axes[0]
    cells = axis.patches[3:8]
    assert [colors.to_hex(cell.get_facecolor()).upper() for cell in cells] == [
        palette.color(e) for e in (0, 1, 2, 0, 1)]
    assert Counter(words(axis.texts)) == Counter(
        ["expert", "one", "two", *"012", *"ab↵c", *"0120", *"d" * 40, *"1" * 40])
    left, top = np.array([cell.get_xy() for cell in cells]).T
    assert left.tolist() == [0, 1, 2, 0, 0] and top[0] == top[1] == top[2] < top[3] < top[4]
    (first, last), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for x, y, width, height in (cell.get_bbox().bounds for cell in axis.patches):
        assert first <= x and x + width <= last and top <= y and y + height <= bottom
