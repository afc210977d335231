"""Pictures: each shows the numbers that it was given, for one layer and for many, and is written whole or not."""

import os
from collections import Counter

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from minimoe.plots import coloured_text, expert_load, figures, loss_curves, palette

each_number_of_experts = pytest.mark.parametrize("n_experts", [1, 4, 11])
each_number_of_layers = pytest.mark.parametrize("n_layers", [1, 3])


def shares(*shape):
    """Random loads that sum to 1 over the last axis."""
    load = np.random.default_rng(0).random(shape)
    return load / load.sum(axis=-1, keepdims=True)


def curves(seeds=1):
    rng = np.random.default_rng(0)
    steps = np.array([10, 20, 30])
    return {name: (steps, steps * flops, rng.random((seeds, 3))) for name, flops in
            (("MoE", 2e9), ("dense, small", 1e9), ("dense, large", 4e9))}


def brightness(colour):
    """Relative luminance.          [WCAG 2.2]"""
    rgb = np.array(colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


FIGURES = {
    "losses": lambda: loss_curves.losses(curves(3), "title"),
    "load over time": lambda: expert_load.load_over_time(np.arange(4), shares(4, 2, 3), "title"),
    "load by domain": lambda: expert_load.load_by_domain(shares(2, 2, 3), ("english", "python"), "title"),
    "coloured text": lambda: coloured_text.coloured_text([("english", "two\nlines", np.arange(9) % 3)], 3, "title"),
}

each_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


@each_figure
def test_every_kind_is_a_figure_with_its_title(draw):
    figure = draw()
    assert type(figure) is Figure and figure.get_suptitle() == "title"


def test_axes_say_what_they_show_and_in_which_unit():
    by_step, by_flops = FIGURES["losses"]().axes
    assert (by_step.get_xlabel(), by_step.get_ylabel()) == ("optimiser steps", "validation loss (nats per token)")
    assert by_flops.get_xlabel().startswith("training FLOPs") and by_flops.get_xscale() == "log"
    for name, x in (("load over time", "optimiser steps"), ("load by domain", "expert")):
        axes = FIGURES[name]().axes
        assert axes[-1].get_xlabel().startswith(x)
        assert all(axis.get_ylabel().endswith("share of assignments") for axis in axes)


@pytest.mark.parametrize("seeds", [1, 3])
def test_losses_are_drawn_against_steps_and_flops(seeds):
    by_step, by_flops = loss_curves.losses(curves(seeds), "title").axes
    for axis, x in ((by_step, 0), (by_flops, 1)):
        assert len(axis.lines) == 3
        for line, (name, (*along, ce)) in zip(axis.lines, curves(seeds).items(), strict=True):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_xdata(), along[x])
            np.testing.assert_allclose(line.get_ydata(), ce.mean(axis=0))
    assert [text.get_text() for text in by_step.get_legend().get_texts()] == list(curves())


def test_the_band_of_several_seeds_reaches_from_the_lowest_to_the_highest():
    for axis in loss_curves.losses(curves(3), "title").axes:
        for band, (_, _, ce) in zip(axis.collections, curves(3).values(), strict=True):
            heights = band.get_paths()[0].vertices[:, 1]
            np.testing.assert_allclose([heights.min(), heights.max()], [ce.min(), ce.max()])


def test_one_seed_has_no_band():
    assert [len(axis.collections) for axis in loss_curves.losses(curves(1), "title").axes] == [0, 0]


def test_losses_of_one_seed_may_come_as_one_row():
    steps = np.array([1, 2])
    [line, *_] = loss_curves.losses({"MoE": (steps, steps, np.array([2.0, 1.0]))}, "title").axes[0].lines
    assert line.get_ydata().tolist() == [2, 1]


def test_the_lines_differ_in_more_than_colour():
    axis = loss_curves.losses(curves(), "title").axes[0]
    assert len({line.get_linestyle() for line in axis.lines}) == len({line.get_color() for line in axis.lines}) == 3


@each_number_of_layers
@each_number_of_experts
def test_loads_over_time_are_stacked_up_to_one(n_layers, n_experts):
    load = shares(5, n_layers, n_experts)
    axes = expert_load.load_over_time(np.arange(5), load, "title").axes
    assert len(axes) == n_layers
    for layer, axis in enumerate(axes):
        assert axis.get_ylabel().startswith(f"layer {layer}")
        assert len(axis.collections) == n_experts
        tops = [area.get_paths()[0].vertices[:, 1].max() for area in axis.collections]
        np.testing.assert_allclose(tops, load[:, layer].cumsum(axis=1).max(axis=0))
        assert tops[-1] == pytest.approx(1)


def test_an_even_split_is_marked():
    # of three experts: a line across the bars at 1/3
    by_domain = FIGURES["load by domain"]().axes[0]
    np.testing.assert_allclose([line.get_ydata()[0] for line in by_domain.lines], [1 / 3])


def test_an_expert_with_a_share_to_see_is_named_at_its_middle():
    # 0.02 is too thin for a number; 0.58 lies from 0.02 to 0.6, 0.4 from there to 1
    axis = expert_load.load_over_time(np.arange(2), np.array([[[0.02, 0.58, 0.4]]] * 2), "title").axes[0]
    assert [(text.get_text(), text.xy[1]) for text in axis.texts] == [("1", pytest.approx(0.31)),
                                                                    ("2", pytest.approx(0.8))]


def test_the_loads_of_a_single_record_can_be_drawn():
    assert expert_load.load_over_time(np.array([1]), shares(1, 1, 3), "title").axes


@each_number_of_layers
@each_number_of_experts
@pytest.mark.parametrize("n_domains", [1, 3])
def test_loads_by_domain_are_bars_of_their_height(n_layers, n_experts, n_domains):
    load, names = shares(n_domains, n_layers, n_experts), [f"domain {d}" for d in range(n_domains)]
    axes = expert_load.load_by_domain(load, names, "title").axes
    assert len(axes) == n_layers
    for layer, axis in enumerate(axes):
        for d, bars in enumerate(axis.containers):
            np.testing.assert_allclose([bar.get_height() for bar in bars], load[d, layer])
        centres = np.array([[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in axis.containers])
        np.testing.assert_allclose(centres.mean(axis=0), range(n_experts), atol=1e-12)  # together around the number
        assert axis.get_xticks().tolist() == list(range(n_experts))
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == names


def test_bars_of_one_expert_do_not_overlap():
    axis = expert_load.load_by_domain(shares(3, 1, 2), "abc", "title").axes[0]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bars in axis.containers for bar in bars)
    assert all(right <= left + 1e-12 for (_, right), (left, _) in zip(edges, edges[1:], strict=False))


def test_domains_differ_in_more_than_colour():
    axis = expert_load.load_by_domain(shares(4, 1, 2), "abcd", "title").axes[0]
    assert len({bars[0].get_hatch() for bars in axis.containers}) == 4


def test_a_domain_may_begin_with_an_underscore():
    axis = expert_load.load_by_domain(shares(2, 1, 2), ("_a.txt", "_b.txt"), "title").axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["_a.txt", "_b.txt"]


@each_number_of_experts
def test_each_character_stands_on_the_colour_of_its_expert_with_its_number(n_experts):
    text = "Some text\nof two lines"
    experts = np.arange(len(text)) % n_experts
    axis = coloured_text.coloured_text([("domain", text, experts)], n_experts, "title").axes[0]
    patches, words = axis.patches[n_experts:], [label.get_text() for label in axis.texts]
    assert [colors.to_hex(patch.get_facecolor()).upper() for patch in patches] == [palette.colour(e) for e in experts]
    assert Counter(words) == Counter([*text.replace("\n", "↵"), *map(str, experts), *map(str, range(n_experts)),
                                      "domain", "expert"])


def test_lines_of_text_are_rows_of_cells():
    axis = coloured_text.coloured_text([("", "ab\nc", [0] * 4), ("", "d", [0])], 1, "title").axes[0]
    left, top = np.array([patch.get_xy() for patch in axis.patches[1:]]).T
    assert left.tolist() == [0, 1, 2, 0, 0]  # the line break is a cell of its own
    assert top[0] == top[1] == top[2] < top[3] < top[4]


def test_all_of_the_text_is_inside_of_the_picture():
    axis = coloured_text.coloured_text([("", "a\n" * 9 + "a long line", [0] * 29)] * 3, 2, "title").axes[0]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    for patch in axis.patches[2:]:
        assert left <= patch.get_x() and patch.get_x() + patch.get_width() <= right
        assert top <= patch.get_y() and patch.get_y() + patch.get_height() <= bottom


def test_the_first_eight_experts_differ_and_the_ninth_begins_again():
    assert len({palette.colour(expert) for expert in range(8)}) == 8
    assert [palette.colour(expert) for expert in range(8, 11)] == [palette.colour(expert) for expert in range(3)]


@pytest.mark.parametrize("expert", range(8))
def test_ink_can_be_read_on_every_colour(expert):
    high, low = sorted((brightness(palette.colour(expert)), brightness(palette.ink(expert))), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5  # the contrast that WCAG 2.2 asks of text


def test_ink_by_hand():
    # blue #0072B2: 0.587 * 114 + 0.114 * 178 = 87 is dark;  yellow #F0E442: 72 + 134 + 8 = 213 is not
    assert (palette.colour(4), palette.ink(4)) == ("#0072B2", "#ffffff")
    assert (palette.colour(3), palette.ink(3)) == ("#F0E442", "#000000")


@each_figure
def test_the_same_figure_is_the_same_bytes(tmp_path, draw):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.save(draw(), one)
    figures.save(draw(), two)
    assert one.read_bytes() == two.read_bytes() and one.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["figure.txt", "figure", "figure.png.bak"])
def test_a_path_that_is_not_a_pngs_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: must end in .png"):
        figures.save(Figure((1, 1)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_saving_makes_the_folder_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "new" / "figure.png"
    figures.save(Figure((1, 1)), path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("module, function", [(os, "replace"), (Figure, "savefig")])
def test_saving_that_fails_leaves_the_picture_before_it(tmp_path, monkeypatch, module, function):
    def fail(*_, **__):
        raise OSError("no space")

    path = tmp_path / "figure.png"
    path.write_bytes(b"before")
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(ValueError, match=f"cannot write the figure {path}: no space"):
        figures.save(Figure((1, 1)), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
