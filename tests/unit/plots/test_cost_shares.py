"""Pictures of costs: bars of parts that add up to the whole, in colours that tell the parts apart."""

from collections import defaultdict

import pytest
from matplotlib import colors

from minimoe.cost import deployment, formula, parts, published, sheet
from minimoe.plots import cost_shares, figures, palette

KEYS = ("llama-2-7b", "mixtral-8x7b", "deepseek-v3", "gpt-2")
RECORDS = {key: sheet.sheet(published.find(key).name, published.find(key).arch, 1024, deployment.MACHINES["h100"])
           for key in KEYS}
LABELS = ["parameters", "active parameters", "FLOPs a token"]


def bars_of(axis):
    """Row -> (left, width, colour) of its pieces, from the left."""
    rows = defaultdict(list)
    for bar in axis.patches:
        rows[round(bar.get_y() + bar.get_height() / 2)].append(
            (bar.get_x(), bar.get_width(), colors.to_hex(bar.get_facecolor())))
    return {row: sorted(pieces) for row, pieces in sorted(rows.items())}


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS], ids=["one model", "four models"])
def test_bars_are_whole(keys):
    axes = cost_shares.cost_shares([RECORDS[key] for key in keys]).axes
    assert len(axes) == len(keys)
    for axis in axes:
        assert axis.get_xlim() == (0, 100)
        rows = bars_of(axis)
        assert list(rows) == list(range(5))
        for pieces in rows.values():
            assert sum(width for _, width, _ in pieces) == pytest.approx(100)
            for (left, width, _), (following, *_) in zip(pieces, pieces[1:], strict=False):
                assert left + width == pytest.approx(following)  # side by side, from 0
            assert pieces[0][0] == 0


@pytest.mark.parametrize("n, columns, lines", [(1, 1, 1), (4, 1, 4), (5, 2, 3), (8, 2, 4), (9, 3, 3), (13, 3, 5)])
def test_many_models_stand_in_columns(n, columns, lines):
    figure = cost_shares.cost_shares([RECORDS[KEYS[i % 4]] for i in range(n)])
    figure.draw_without_rendering()
    boxes = [axis.get_position() for axis in figure.axes]
    assert len({round(box.x0, 3) for box in boxes}) == columns
    tops = [round(box.y1, 3) for box in boxes]
    assert tops == sorted(tops, reverse=True) and len(set(tops)) == lines  # read line by line
    assert figure.get_figheight() == pytest.approx(0.9 + 2.1 * lines)
    for place, axis in enumerate(figure.axes):
        said = [label.get_visible() and label.get_text() for label in axis.get_yticklabels()]
        assert (said[:3] == LABELS) == (place % columns == 0)  # at the left of each line
        lowest = place + columns >= n
        assert ("share (%)" in axis.get_xlabel()) == lowest
        assert any(label.get_visible() for label in axis.get_xticklabels()) == lowest


def test_rows_that_differ_from_those_at_the_left_are_named():
    silent = {**RECORDS["gpt-2"], "bytes_read": {}}
    first, second, *_ = cost_shares.cost_shares([RECORDS["gpt-2"], silent, *RECORDS.values()]).axes
    assert [label.get_text() for label in second.get_yticklabels() if label.get_visible()] == LABELS
    assert len(first.get_yticklabels()) == 5


def test_a_long_title_has_several_lines():
    axis = cost_shares.cost_shares([{**RECORDS["gpt-2"], "name": "somebody/some model " * 5}]).axes[0]
    assert max(map(len, axis.get_title().splitlines())) <= 80 < len(axis.get_title())


def test_the_pieces_of_mixtral_by_hand():
    # experts have 32 * 8 * 3 * 4096 * 14336 of 46,702,792,704 parameters, and a quarter of that of 12,879,925,248
    axis = cost_shares.cost_shares([RECORDS["mixtral-8x7b"]]).axes[0]
    blue, experts = palette.PARTS["experts"].lower(), 32 * 8 * 3 * 4096 * 14336
    widths = [next(width for _, width, colour in pieces if colour == blue) for pieces in bars_of(axis).values()]
    assert widths[:2] == pytest.approx([100 * experts / 46_702_792_704, 100 * experts / 4 / 12_879_925_248])
    work = RECORDS["mixtral-8x7b"]["forward_flops_per_token"]
    assert widths[2] == pytest.approx(100 * 2 * experts / 4 / work)
    for width, texts in zip(widths[3:], (1, 64), strict=True):
        read = RECORDS["mixtral-8x7b"]["bytes_read"][texts]
        assert width == pytest.approx(100 * read["experts"] / sum(read.values()))


def test_rows_are_named_with_their_whole_at_the_right():
    figure = cost_shares.cost_shares([RECORDS["mixtral-8x7b"]])
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names[:3] == LABELS and len(names) == 5
    assert "1 text" in names[3] and "64 texts" in names[4]
    right = next(child for child in axis.child_axes)
    # 46.7 G, 12.9 G, forward FLOPs 2 * (12,879,925,248 - 131,072,000 - 266,240) + 4 * 32 * 4096 * 1024 = 26.0 G;
    # bytes: 2 * (12,748,853,248) and 1,024 * 131,072 of cache = 25.6 GB;  64 texts 93.1 + 8.59 = 102 GB
    assert [label.get_text() for label in right.get_yticklabels()] == ["46.7 G", "12.9 G", "26 G", "25.6 GB", "102 GB"]
    bottom, top = axis.get_ylim()
    assert bottom > 4.3 and top < -0.3  # the first row is at the top
    assert "share (%)" in figure.axes[-1].get_xlabel()


@pytest.mark.parametrize("key, words", [
    ("mixtral-8x7b", "experts, 97% of the parameters"),  # 45,097,156,608 / 46,702,792,704
    ("llama-2-7b", "feed-forward blocks, 64% of the parameters"),  # 32 * 3 * 4096 * 11008 / 6,738,415,616
])
def test_the_title_names_the_largest_part(key, words):
    title = cost_shares.cost_shares([RECORDS[key]]).axes[0].get_title()
    assert title.startswith(f"{published.find(key).name}: {words} and ")
    assert title.endswith("% of the FLOPs")


def test_every_part_that_there_can_be_has_a_colour_of_its_own():
    assert set(palette.PARTS) == {*parts.NAMES, formula.SCORES, deployment.CACHE}
    shades = [colors.to_hex(shade) for shade in palette.PARTS.values()]
    assert len(set(shades)) == len(shades)


def test_pieces_have_the_colours_of_the_legend_in_one_order():
    figure = cost_shares.cost_shares(list(RECORDS.values()))
    order, seen = [shade.lower() for shade in palette.PARTS.values()], set()
    for axis in figure.axes:
        for pieces in bars_of(axis).values():
            places = [order.index(colour) for _, _, colour in pieces]
            assert places == sorted(places)
            seen |= set(places)
    [legend] = figure.legends
    names = list(palette.PARTS)
    assert [text.get_text() for text in legend.get_texts()] == [names[place] for place in sorted(seen)]
    shown = [colors.to_hex(handle.get_facecolor()) for handle in legend.get_patches()]
    assert shown == [order[place] for place in sorted(seen)]


def test_pieces_that_have_room_say_their_share_in_ink_that_can_be_read():
    axis = cost_shares.cost_shares([RECORDS["deepseek-v3"]]).axes[0]
    wide = [(row, left + width / 2, f"{width:.0f}", palette.ink_on(colour))
            for row, pieces in bars_of(axis).items() for left, width, colour in pieces if width > 7]
    found = [(*reversed(text.get_position()), text.get_text(), text.get_color()) for text in axis.texts]
    assert len(wide) >= 5 and found == [(row, pytest.approx(x), *words) for row, x, *words in wide]


def test_the_same_records_are_the_same_bytes(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for path in (one, two):
        figures.save(cost_shares.cost_shares([RECORDS["gpt-2"], RECORDS["mixtral-8x7b"]]), path)
    assert one.read_bytes() == two.read_bytes() and one.read_bytes().startswith(b"\x89PNG")
