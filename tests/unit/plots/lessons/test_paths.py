"""Paths: each stream as wide as its share of the tokens, from where it begins to where it ends; nothing is left out."""

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.collections import PolyCollection

from minimoe.plots import figures, palette
from minimoe.plots.lessons import paths

BEFORE_T, AFTER_T = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
"""Four tokens: one stays with expert 0, two go from 0 to 1, one stays with 1."""


def random_paths(n_layers=3, n_tokens=50, n_experts=8):
    return np.random.default_rng(0).integers(0, n_experts, (n_layers, n_tokens))


def drawn(expert_LT, n_experts=8):
    return paths.alluvial({"one": expert_LT}, n_experts, "title")


def test_streams_by_hand():
    # shares: 0 to 0 a quarter, 0 to 1 a half, 1 to 1 a quarter
    # at the left: 0->0 at 0, 0->1 at .25, 1->0 (empty) and 1->1 at .75;  at the right: 0->0 at 0, 1->0 (empty) at .25,
    # then those that arrive at 1: 0->1 at .25, 1->1 at .75
    share_EE, left_EE, right_EE = paths.streams(BEFORE_T, AFTER_T, 2)
    assert share_EE.tolist() == [[0.25, 0.5], [0, 0.25]]
    assert left_EE.tolist() == [[0, 0.25], [0.75, 0.75]]
    assert right_EE.tolist() == [[0, 0.25], [0.25, 0.75]]


def test_streams_lie_side_by_side_at_both_ends():
    share_EE, left_EE, right_EE = paths.streams(*random_paths(2), 8)
    assert share_EE.sum() == pytest.approx(1)
    for start_EE in (left_EE, right_EE.T):
        end_EE = start_EE.ravel() + (share_EE if start_EE is left_EE else share_EE.T).ravel()
        np.testing.assert_allclose(end_EE[:-1], start_EE.ravel()[1:])
        assert end_EE[-1] == pytest.approx(1)


def test_a_stream_is_drawn_from_its_left_to_its_right_end():
    axis = drawn(np.array([BEFORE_T, AFTER_T]), 2).axes[0]
    stayed, moved, stayed_too = (band.get_paths()[0].vertices for band in axis.collections)
    for vertices, (left, right, wide) in zip((stayed, moved, stayed_too), ((0, 0, 0.25), (0.25, 0.25, 0.5),
                                                                           (0.75, 0.75, 0.25)), strict=True):
        for x, y in ((vertices[:, 0].min(), left), (vertices[:, 0].max(), right)):
            at = vertices[np.isclose(vertices[:, 0], x), 1]
            assert [at.min(), at.max()] == pytest.approx([y, y + wide])


def test_a_stream_has_the_colour_of_the_expert_that_it_leaves():
    axis = drawn(np.array([BEFORE_T, AFTER_T]), 2).axes[0]
    shades = [colors.to_hex(band.get_facecolor()[0]).upper() for band in axis.collections]
    assert shades == [palette.colour(0), palette.colour(0), palette.colour(1)]


def test_a_block_is_as_high_as_its_expert_has_tokens_and_named():
    axis = drawn(np.array([BEFORE_T, AFTER_T]), 2).axes[0]
    assert [patch.get_height() for patch in axis.patches] == [0.75, 0.25, 0.25, 0.75]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "0", "1"]
    assert [text.get_position() for text in axis.texts] == [(0, 0.375), (0, 0.875), (1, 0.125), (1, 0.625)]


def test_a_block_too_thin_for_its_number_has_none():
    axis = drawn(np.array([[0] * 39 + [1]])).axes[0]  # expert 1 has 1 of 40 tokens
    assert [text.get_text() for text in axis.texts] == ["0"]


@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_every_layer_has_its_blocks_and_a_name(n_layers):
    axis = drawn(random_paths(n_layers)).axes[0]
    assert len(axis.patches) == 8 * n_layers
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"layer {i}" for i in range(n_layers)]
    streams = sum(len(set(zip(a, b, strict=True))) for a, b in zip(random_paths(n_layers), random_paths(n_layers)[1:],
                                                                   strict=False))
    assert len([band for band in axis.collections if isinstance(band, PolyCollection)]) == streams


def test_models_stand_side_by_side_under_their_names():
    figure = paths.alluvial({"trained": random_paths(), "untrained": random_paths()[::-1]}, 8, "title")
    assert [axis.get_title() for axis in figure.axes] == ["trained", "untrained"]
    assert figure.get_suptitle() == "title" and figure.axes[0].get_ylabel() == "share of the tokens"


def test_all_is_inside_of_the_picture():
    axis = drawn(random_paths()).axes[0]
    assert axis.get_ylim() == (1, 0) and axis.get_xlim() == (-paths.BLOCK, 2 + paths.BLOCK)


def test_the_same_figure_is_the_same_bytes(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    figures.save(drawn(random_paths()), one)
    figures.save(drawn(random_paths()), two)
    assert one.read_bytes() == two.read_bytes()
