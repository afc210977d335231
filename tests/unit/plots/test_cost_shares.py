"""Pictures of costs: bars of parts that add up to the whole, in colors that tell the parts apart."""

from collections import defaultdict

import pytest
from matplotlib import colors

from minimoe.cost import deployment, formula, parts
from minimoe.plots import cost_shares, palette
from tests.unit.plots.pictures import RECORDS, TITLED

LABELS = ["parameters", "active parameters", "FLOPs per token",
          "bytes to decode, batch size 1", "bytes to decode, batch size 64"]


def bars_of(axis):
    """Row -> (left, width, color) of its pieces, from the left."""
    rows = defaultdict(list)
    for bar in axis.patches:
        rows[round(bar.get_y() + bar.get_height() / 2)].append(
            (bar.get_x(), bar.get_width(), colors.to_hex(bar.get_facecolor())))
    return {row: sorted(pieces) for row, pieces in sorted(rows.items())}


def names(axis):
    return [label.get_text() for label in axis.get_yticklabels() if label.get_visible()]


def test_bars_are_whole_and_their_parts_have_the_legends_colors_in_one_order():
    figure, seen = TITLED["cost shares"][0](""), set()
    order = [shade.lower() for shade in palette.PARTS.values()]
    for axis in figure.axes:
        assert axis.get_xlim() == (0, 100) and list(bars_of(axis)) == list(range(5)) and names(axis) == LABELS
        for pieces in bars_of(axis).values():
            ends = [0, *(left + width for left, width, _ in pieces)]
            assert [left for left, _, _ in pieces] == pytest.approx(ends[:-1]) and ends[-1] == pytest.approx(100)
            places = [order.index(color) for _, _, color in pieces]
            assert places == sorted(places)
            seen |= set(places)
    handles = zip(figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True)
    assert [(text.get_text(), colors.to_hex(patch.get_facecolor())) for text, patch in handles] == [
        (cost_shares.NAMES.get(part := list(palette.PARTS)[place], part), order[place]) for place in sorted(seen)]
    assert set(palette.PARTS) == {*parts.NAMES, formula.SCORES, deployment.CACHE} and len(set(order)) == len(order)


def test_the_pieces_of_mixtral_by_hand():
    # experts have 32 * 8 * 3 * 4096 * 14336 of 46,702,792,704 parameters, and a quarter of that of 12,879,925,248
    record, experts = RECORDS["mixtral-8x7b"], 32 * 8 * 3 * 4096 * 14336
    axis = cost_shares.cost_shares([record]).axes[0]
    blue, read = palette.PARTS["experts"].lower(), [record["bytes_read"][texts] for texts in (1, 64)]
    found = {row: next(width for _, width, color in pieces if color == blue) for row, pieces in bars_of(axis).items()}
    assert found == pytest.approx({
        0: 100 * experts / 46_702_792_704, 1: 100 * experts / 4 / 12_879_925_248,
        2: 100 * 2 * experts / 4 / record["forward_flops_per_token"],
        **{row: 100 * of_row["experts"] / sum(of_row.values()) for row, of_row in enumerate(read, 3)}})
    # 46.7 G, 12.9 G, forward FLOPs 2 * (12,879,925,248 - 131,072,000 - 266,240) + 4 * 32 * 4096 * 512.5 = 25.8 G;
    # bytes: 2 * (12,748,853,248) and 1,024 * 131,072 of cache = 25.6 GB;  64 texts 93.1 + 8.59 = 102 GB
    assert names(axis.child_axes[0]) == ["46.7 G", "12.9 G", "25.8 G", "25.6 GB", "102 GB"]
    wide = [(row, pytest.approx(left + width / 2), f"{width:.0f}", palette.ink_on(color))
            for row, pieces in bars_of(axis).items() for left, width, color in pieces if width > 7]
    assert [(*text.get_position()[::-1], text.get_text(), text.get_color()) for text in axis.texts] == wide


def test_many_models_stand_in_columns_read_line_by_line():
    """Rows are named at the left of each line, and where they are not those at the left: the second model has five."""
    five, three = RECORDS["gpt-2"], RECORDS["gpt-2"] | {"bytes_read": {}}
    for n, columns, lines in ((4, 1, 4), (5, 2, 3), (8, 2, 4), (9, 3, 3)):
        figure = cost_shares.cost_shares([three, five, *[three] * 7][:n])
        for place, axis in enumerate(figure.axes):
            assert axis.get_subplotspec().get_geometry() == (lines, columns, place, place)
            assert names(axis) == (LABELS if place == 1 else LABELS[:3] if place % columns == 0 else [])
            assert ("share (%)" in axis.get_xlabel()) == (place + columns >= n)


@pytest.mark.parametrize("key, words", [
    # 45,097,156,608 / 46,702,792,704, and 2 of them for each of a quarter / 25.77 GFLOPs
    ("mixtral-8x7b", ": 97% of the parameters and 88% of the FLOPs are in experts"),
    # 32 * 3 * 4096 * 11008 / 6,738,415,616, and twice that / (2 * 6,607,077,376 + 4 * 32 * 4096 * 512.5)
    ("llama-2-7b", ": 64% of the parameters and 64% of the FLOPs are in dense FFNs"),
])
def test_the_title_names_the_largest_part_in_several_lines_if_it_is_long(key, words):
    assert words in cost_shares.cost_shares([RECORDS[key]]).axes[0].get_title()
    title = cost_shares.cost_shares([{**RECORDS[key], "name": "somebody/some model " * 5}]).axes[0].get_title()
    assert max(map(len, title.splitlines())) <= 80 < len(title)
