"""The two diagrams: what stands on them is what the Routing holds, readable on a light page and on a dark one."""

from itertools import combinations

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Rectangle

from minimoe.plots import block, dispatch_combine, palette
from tests.unit.plots.pictures import BLOCK, ROUTED, words
from tests.unit.plots.test_figures import brightness

THEMES = {"light": palette.LIGHT, "dark": palette.DARK}
DRAW = {"block": lambda theme: block.transformer_block(ROUTED, 1, "cat", BLOCK, "title", theme),
        "dispatch": lambda theme: dispatch_combine.dispatch_combine(ROUTED, "cat", "title", theme)}


def bars(axis):
    """(color, height) of the bars, which are the only rectangles with square corners."""
    return [(to_hex(bar.get_facecolor()).upper(), bar.get_height()) for bar in axis.patches if type(bar) is Rectangle]


def test_a_block_shows_one_tokens_probabilities_its_gates_and_the_parameters_that_it_uses():
    [axis] = DRAW["block"](palette.LIGHT).axes
    shown, bold = words(axis.texts), [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"]
    assert {".10", ".35", ".45", "top-2", "a token, after “c”"} <= set(shown)
    assert {".35", ".45", "× 0.44", "× 0.56", "1", "2", "a"} <= set(bold) and not {".10", "0"} & set(bold)
    # attention 40 + 4, router and norm 12 + 4, each expert 24 + 24: all 60 + 3 * 48 = 204, and 60 + 2 * 48 = 156 used
    assert block.used_parameters(BLOCK, {1, 2}) == (156, 204)
    assert "this token uses 156 of 204 parameters (76%)" in shown
    idle, *chosen = bars(axis)[:3]  # as high as their probabilities
    assert [shade for shade, _ in chosen] == [palette.color(1), palette.color(2)] and idle[1] != 0
    assert [height / chosen[1][1] for _, height in (idle, *chosen)] == pytest.approx([0.1 / 0.45, 0.35 / 0.45, 1])


def test_dispatch_sorts_rows_by_expert_and_combine_weighs_them_by_the_gates_without_what_was_dropped():
    [axis] = DRAW["dispatch"](palette.DARK).axes
    slots = sorted((text.get_position()[1], text.get_text()) for text in axis.texts
                   if dispatch_combine.SLOT < text.get_position()[0] < dispatch_combine.EXPERT)
    assert [name for _, name in slots] == list("ctacat")  # c, t | a, and an empty slot | c, a, and no room for t
    gates = sorted((text.get_position()[1], text.get_text()) for text in axis.texts if text.get_text().startswith("×"))
    assert [gate for _, gate in gates] == ["× 0.75", "× 0.38", "× 0.44", "× 0.25", "× 0.56"]
    lines = [patch for patch in axis.patches if type(patch) is PathPatch]
    assert len(lines) == 2 * (6 + 5)  # each of the six has a line to its row, each of the five kept a line back
    assert words(axis.texts).count("dropped: full") == 1 and "capacity C = 2" in words(axis.texts)
    shades = [palette.color(e) for e in (0, 2, 1, 2, 0)] + [palette.DARK.page.upper()]  # that of t's last is open
    assert bars(axis) == [(shade, 44 * gate) for shade, gate in zip(
        shades, (0.75, 0.25, 0.4375, 0.5625, 0.375, 0.625), strict=True)]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", DRAW)
def test_no_words_lie_on_others_and_all_can_be_read(name, theme):
    theme = THEMES[theme]
    figure = DRAW[name](theme)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (figure._suptitle, *figure.axes[0].texts) if text.get_text()]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert to_hex(figure.get_facecolor()) == theme.page
    for ink, ground in ((theme.ink, theme.page), (theme.ink, theme.box), (theme.soft, theme.page),
                        (theme.soft, theme.idle), (theme.dropped, theme.page)):
        low, high = sorted((brightness(ink), brightness(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)  # the contrast that WCAG 2.2 asks of text
