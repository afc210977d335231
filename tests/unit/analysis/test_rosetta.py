"""The table of conventions, against numbers worked out by hand.

The batch is eight rounds of six tokens (0, 1), (0, 2), (0, 1), (1, 2), (3, 0), (4, 5): first and second choice, with
probabilities 0.5 and 0.2, and 0.05 for the other six experts.  In a round

    first choices of an expert   3 1 0 1 1 0 0 0            all choices   4 3 2 1 1 1 0 0
    sum of the probabilities     expert 0: 3 * .5 + .2 + 2 * .05 = 1.8; 1: .5 + 2 * .2 + 3 * .05 = 1.05;
                                 2: 2 * .2 + 4 * .05 = .6; 3, 4: .5 + 5 * .05 = .75; 5: .2 + 5 * .05 = .45; 6, 7: .3

so the mean probabilities are these over 6: .3 .175 .1 .125 .125 .075 .05 .05.
"""

import numpy as np
import pytest

from minimoe.analysis import rosetta
from minimoe.moe import capacity

ENTRIES = {entry.name: entry for entry in rosetta.read(rosetta.example())}

FIRST = (3 * 0.3 + 0.175 + 0.125 + 0.125) / 6
ALL = (4 * 0.3 + 3 * 0.175 + 2 * 0.1 + 0.125 + 0.125 + 0.075) / 6
SIGMOID = (4 * 53 + 3 * 34 + 2 * 22 + 24 + 24 + 17) / 6 / 198
"""Scores sigmoid(log p) = p / (1 + p): 1/3, 1/6 and six of 1/21, which sum to 11/14: shares 14/33, 7/33, 2/33.  Their
sums over a round, in 33rds: expert 0: 3 * 14 + 7 + 2 * 2 = 53; 1: 14 + 2 * 7 + 3 * 2 = 34; 2: 2 * 7 + 4 * 2 = 22; 3, 4:
14 + 5 * 2 = 24; 5: 7 + 5 * 2 = 17; so the mean of the first is 53 / 33 / 6 = 53 / 198."""


def test_the_mean_probabilities_are_those_above():
    mean_E = np.exp(rosetta.example()).mean(axis=0)
    np.testing.assert_allclose(mean_E, [0.3, 0.175, 0.1, 0.125, 0.125, 0.075, 0.05, 0.05], rtol=1e-14)


@pytest.mark.parametrize(("name", "slots"), [
    ("GShard (paper)", 12),  # 2 * 48 / 8, no factor
    ("GShard (lingvo)", 8),  # 1.25 * 48 / 8 = 7.5, down to 7, up to a multiple of 4
    ("Switch (Mesh TF)", 7), ("ST-MoE (Mesh TF)", 7),  # 7.5, down
    ("ST-MoE (Flaxformer)", 8),  # 7.5, to the nearest even
    ("Mixtral", None), ("OLMoE (transformers)", None), ("OLMoE (training)", None), ("DeepSeek-V3", None),
    ("MegaBlocks", 15),  # 1.25 * 2 * 48 / 8
    ("Tutel", 14),  # 2 * (1.25 * 6, down)
    ("minimoe", 15)])
def test_slots_by_hand(name, slots):
    assert ENTRIES[name].slots == slots


@pytest.mark.parametrize(("name", "slots"), [
    ("GShard (paper)", 11),  # 2 * 44 / 8, no factor
    ("GShard (lingvo)", 8),  # 1.25 * 44 / 8 = 6.875, down to 6, up to a multiple of 4
    ("Switch (Mesh TF)", 6), ("ST-MoE (Mesh TF)", 6),  # 6.875, down
    ("ST-MoE (Flaxformer)", 7),  # 6.875, to the nearest
    ("MegaBlocks", 13),  # 2 * 6.875 = 13.75, down
    ("Tutel", 14),  # 44 / 8 up is 6, 1.25 * 6 = 7.5 down is 7, twice
    ("minimoe", 14)])  # 13.75, up
def test_slots_of_44_tokens_with_2_of_8_experts_and_a_factor_of_a_quarter_more(name, slots):
    assert rosetta.CONVENTIONS[name].capacity(44, 8, 2, 1.25) == slots


@pytest.mark.parametrize(("name", "slots"), [
    ("ST-MoE (Flaxformer)", 6),  # 6.5 lies between 6 and 7, and 6 is even
    ("Switch (Mesh TF)", 6), ("ST-MoE (Mesh TF)", 6),  # 6.5, down
    ("GShard (lingvo)", 8), ("MegaBlocks", 13), ("minimoe", 13),  # 2 * 6.5
    ("Tutel", 14)])  # 6.5 up is 7, twice
def test_slots_of_52_tokens_are_half_a_slot_more_than_a_whole_number(name, slots):
    assert rosetta.CONVENTIONS[name].capacity(52, 8, 2, 1) == slots


@pytest.mark.parametrize("name", ["Switch (Mesh TF)", "ST-MoE (Mesh TF)", "ST-MoE (Flaxformer)"])
@pytest.mark.parametrize(("n_tokens", "top_k"), [(8, 2), (3, 1)])  # 1.25 * 8 / 8 = 1.25; 1.25 * 3 / 8 = 0.47
def test_few_tokens_have_four_slots_all_the_same_even_if_there_are_fewer_than_four(name, n_tokens, top_k):
    assert rosetta.CONVENTIONS[name].capacity(n_tokens, 8, top_k, 1.25) == 4


@pytest.mark.parametrize(("name", "slots"), [
    ("Switch (Mesh TF)", 16), ("ST-MoE (Mesh TF)", 16), ("minimoe", 16),  # 4 * 16 / 2 = 32, but no more than tokens
    ("GShard (lingvo)", 32), ("ST-MoE (Flaxformer)", 32), ("MegaBlocks", 32), ("Tutel", 32)])
def test_some_have_no_more_slots_than_tokens(name, slots):
    assert rosetta.CONVENTIONS[name].capacity(16, 2, 1, 4) == slots


def test_our_own_slots_are_one_at_least():
    assert rosetta.CONVENTIONS["minimoe"].capacity(3, 8, 1, 1.25) == 1  # 0.47, up


@pytest.mark.parametrize(("name", "dropped"), [
    # 32, 24, 16, 8, 8, 8 choices of experts 0 to 5
    ("GShard (paper)", 20 + 12 + 4), ("GShard (lingvo)", 24 + 16 + 8), ("ST-MoE (Flaxformer)", 24 + 16 + 8),
    ("ST-MoE (Mesh TF)", 25 + 17 + 9 + 1 + 1 + 1), ("MegaBlocks", 17 + 9 + 1), ("minimoe", 17 + 9 + 1),
    ("Tutel", 18 + 10 + 2), ("Mixtral", 0), ("DeepSeek-V3", 0),
    ("Switch (Mesh TF)", 17 + 1 + 1 + 1)])  # 24, 8, 8, 8 first choices of experts 0, 1, 3, 4
def test_dropped_by_hand(name, dropped):
    assert ENTRIES[name].dropped == dropped


def test_by_rank_every_first_choice_of_expert_0_that_fits_comes_before_a_second_one():
    """12 slots are for the first 12 of its first choices, in four rounds; the second choices of (3, 0) have none."""
    kept_TK = ENTRIES["GShard (paper)"].kept_TK.reshape(8, 6, 2)
    assert kept_TK[:4, :3, 0].all() and not kept_TK[4:, :3, 0].any()
    assert not kept_TK[:, 4, 1].any()


def test_by_position_a_second_choice_comes_before_the_first_choices_of_later_tokens():
    """Four choices of expert 0 a round, so 15 slots are three rounds, and the three first choices of the fourth."""
    kept_TK = ENTRIES["MegaBlocks"].kept_TK.reshape(8, 6, 2)
    assert kept_TK[:4, :3, 0].all() and not kept_TK[4:, :3, 0].any()
    assert kept_TK[:, 4, 1].tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize(("name", "gates"), [
    ("GShard (paper)", [5 / 7, 2 / 7]), ("ST-MoE (Mesh TF)", [5 / 7, 2 / 7]), ("Mixtral", [5 / 7, 2 / 7]),
    ("Tutel", [5 / 7, 2 / 7]), ("minimoe", [5 / 7, 2 / 7]), ("GShard (lingvo)", [5 / 7, 2 / 7]),
    ("Switch (Mesh TF)", [0.5]), ("ST-MoE (Flaxformer)", [0.5, 0.2]), ("OLMoE (transformers)", [0.5, 0.2]),
    ("OLMoE (training)", [0.5, 0.2]), ("MegaBlocks", [0.5, 0.2]),
    ("DeepSeek-V3", [2.5 * 2 / 3, 2.5 / 3])])  # scores 1/3 and 1/6, as shares, times 2.5
def test_gates_by_hand(name, gates):
    np.testing.assert_allclose(ENTRIES[name].gates, gates, rtol=1e-12)


@pytest.mark.parametrize(("name", "balance", "even"), [
    ("GShard (paper)", FIRST / 8, 1 / 64), ("GShard (lingvo)", 8 * FIRST, 1), ("Switch (Mesh TF)", 8 * FIRST, 1),
    ("ST-MoE (Mesh TF)", 8 * FIRST, 1), ("Tutel", 8 * FIRST, 1),
    ("ST-MoE (Flaxformer)", 8 * ALL, 2), ("Mixtral", 8 * ALL, 2), ("OLMoE (transformers)", 8 * ALL, 2),
    ("OLMoE (training)", 4 * ALL, 1), ("MegaBlocks", 4 * ALL, 1), ("minimoe", 4 * ALL, 1),
    ("DeepSeek-V3", 4 * SIGMOID, 1)])
def test_balance_by_hand(name, balance, even):
    np.testing.assert_allclose((ENTRIES[name].balance, ENTRIES[name].even), (balance, even), rtol=1e-12)


def test_the_losses_in_round_numbers():
    """8 * 1.325 / 6, 8 * 2.25 / 6, half of it, and 8 / 2 * 423 / 1188."""
    np.testing.assert_allclose((8 * FIRST, 8 * ALL, 4 * ALL, 4 * SIGMOID), (10.6 / 6, 3, 1.5, 47 / 33), rtol=1e-12)


@pytest.mark.parametrize(("name", "share"), [("GShard (paper)", 4 / 7), ("ST-MoE (Mesh TF)", 1)])
def test_how_often_a_second_expert_is_used(name, share):
    """A share of 2/7: 2 * 2/7, and more than 1/5."""
    np.testing.assert_allclose(rosetta.second_used(rosetta.CONVENTIONS[name], ENTRIES[name].gates), share)


def test_every_convention_names_its_source_and_a_known_order():
    for convention in rosetta.CONVENTIONS.values():
        assert convention.source and convention.order in capacity.ORDERS


def test_the_table_has_a_line_for_each_convention():
    lines = rosetta.table(list(ENTRIES.values())).splitlines()
    assert [line[:22].strip() for line in lines[1:13]] == list(rosetta.CONVENTIONS)
    mixtral = lines[1 + list(rosetta.CONVENTIONS).index("Mixtral")].split()
    assert mixtral == ["Mixtral", "-", "0", "-", "0.714", "0.286", "3.0000", "2.0000", "0.001", "0.002"]
