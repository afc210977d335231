"""How a picture is written: whole or not at all; and the colors, rows and marks that all pictures use."""

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from matplotlib.text import Text

from minimoe.plots import figures, palette
from tests.unit.plots.pictures import TITLED, words


def brightness(color):
    """Relative luminance.          [WCAG 2.2]"""
    rgb = np.array(colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_experts_have_eight_colors_on_which_their_ink_can_be_read():
    # blue #0072B2: 0.587 * 114 + 0.114 * 178 = 87 is dark;  yellow #F0E442: 72 + 134 + 8 = 213 is not
    assert (palette.ink(4), palette.ink(3)) == (palette.WHITE, palette.BLACK)
    for expert in range(8):
        high, low = sorted((brightness(palette.color(expert)), brightness(palette.ink(expert))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5  # the contrast that WCAG 2.2 asks of text
    assert len({palette.color(expert) for expert in range(8)}) == 8 and palette.color(8) == palette.color(0)


def test_a_picture_is_a_png_of_the_same_bytes_and_if_it_cannot_be_written_the_one_before_stays(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space")

    path = tmp_path / "figure.PNG"
    figures.save(figures.new_figure(1, 1, "title"), path)
    before = path.read_bytes()
    figures.save(figures.new_figure(1, 1, "title"), path)
    assert path.read_bytes() == before and b"Software" not in before  # nor the time
    monkeypatch.setattr(Figure, "savefig", fail)
    for name, reason in (("figure.PNG", f"cannot write the figure {path}: no space"),
                         *((name, f"{name}: must end in .png") for name in ("figure.txt", "figure", "figure.png.bak"))):
        with pytest.raises(ValueError, match=reason):
            figures.save(Figure((2, 2)), tmp_path / name)
    assert path.read_bytes() == before and before.startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]


def test_the_style_of_a_user_changes_no_byte_and_stays_the_users(tmp_path, monkeypatch):
    """`text.usetex` would need TeX."""
    monkeypatch.setattr(figures, "DPI", 60)
    style = {"font.size": 22, "text.usetex": True, "font.sans-serif": ["DejaVu Serif"], "savefig.transparent": True}
    for folder, settings in (("plain", {}), ("styled", style)):
        with matplotlib.rc_context(settings):
            figures.save(TITLED["pareto"][0]("title"), tmp_path / folder / "a.png")
            assert all(matplotlib.rcParams[name] == value for name, value in settings.items())
    assert (tmp_path / "plain/a.png").read_bytes() == (tmp_path / "styled/a.png").read_bytes()


def test_a_picture_in_words_is_its_title_and_what_its_function_or_else_its_axes_say():
    figure = figures.new_figure(2, 1, "One\ntitle")
    left, right = figure.subplots(1, 2)
    left.set(xlabel="steps", ylabel="nats", title="a")
    right.set(ylabel="loss.", title="b")
    assert figures.describe(figure) == "One title. steps; nats; loss."
    figure.suptitle("One?")
    assert figures.describe(figure) == "One? steps; nats; loss."
    figure.suptitle("")
    assert figures.describe(figure) == "a; b. steps; nats; loss."
    assert figures.describe(TITLED["twins"][0]("Three models")) == (
        "Three models. A model next to its dense twins: parameters, used by a token or idle, and FLOPs per token, "
        "part by part.")


def test_rows_stand_from_the_top_down_with_words_at_the_right_and_powers_are_named_alone():
    axis = figures.new_figure(4, 3).subplots()
    figures.name_rows(axis, ["a", "b"], ["one", "two"])
    assert words(axis.get_yticklabels()) == ["a", "b"]
    assert words(axis.child_axes[0].get_yticklabels()) == ["one", "two"]
    assert axis.get_ylim()[0] > 1 > 0 > axis.get_ylim()[1]
    axis.set(xscale="log", xlim=(0.9, 21))
    figures.name_powers(axis.xaxis, "<{:g}>".format)
    assert [label.get_text() for place, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
            if 0.9 <= place <= 21] == ["<1>", "<2>", "<5>", "<10>", "<20>"]
    assert len(axis.get_xticks(minor=True)) == 0


def test_words_are_text_and_not_formulas_in_titles_rows_and_legends_but_powers_of_ten_are_drawn(tmp_path):
    name = "A $x_{$ B"
    figure = figures.new_figure(4, 3, name)
    left, right = figure.subplots(1, 2)
    figures.name_rows(left, [name, "$y$"], [name, "$z$"])
    right.plot([1, 1e5], [1, 2], label=name)
    right.set(xscale="log", title=name, xlabel=name)
    right.legend()
    right.text(1, 1, name)
    figures.save(figure, tmp_path / "figure.png")
    shown = [text for text in figure.findobj(Text) if "$" in text.get_text()]
    assert sum(text.get_text() == name for text in shown) >= 7  # the right ends of ticks have words too
    assert all(text.get_parse_math() == text.get_text().startswith(r"$\mathdefault{10^") for text in shown)
    assert any(text.get_parse_math() for text in shown)
