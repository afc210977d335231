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

SHARES, RAW = [5 / 7, 2 / 7], [0.5, 0.2]
BY_HAND = {
    # slots, dropped of the 32, 24, 16, 8, 8, 8 choices of experts 0 to 5, gates, balance, balance of an even load
    "GShard (paper)": (12, 20 + 12 + 4, SHARES, FIRST / 8, 1 / 64),  # 2 * 48 / 8 slots, no factor
    "GShard (lingvo)": (8, 24 + 16 + 8, SHARES, 8 * FIRST, 1),  # 1.25 * 48 / 8 = 7.5, down to 7, up to a multiple of 4
    "Switch (Mesh TF)": (7, 17 + 1 + 1 + 1, [0.5], 8 * FIRST, 1),  # 24, 8, 8, 8 first choices of experts 0, 1, 3, 4
    "ST-MoE (Mesh TF)": (7, 25 + 17 + 9 + 1 + 1 + 1, SHARES, 8 * FIRST, 1),
    "ST-MoE (Flaxformer)": (8, 24 + 16 + 8, RAW, 8 * ALL, 2),  # 7.5, to the nearest even
    "Mixtral": (None, 0, SHARES, 8 * ALL, 2), "OLMoE (transformers)": (None, 0, RAW, 8 * ALL, 2),
    "OLMoE (training)": (None, 0, RAW, 4 * ALL, 1),
    "DeepSeek-V3": (None, 0, [2.5 * 2 / 3, 2.5 / 3], 4 * SIGMOID, 1),  # scores 1/3 and 1/6, as shares, times 2.5
    "MegaBlocks": (15, 17 + 9 + 1, RAW, 4 * ALL, 1),  # 1.25 * 2 * 48 / 8
    "Tutel": (14, 18 + 10 + 2, SHARES, 8 * FIRST, 1),  # 2 * (1.25 * 6, down)
    "minimoe": (15, 17 + 9 + 1, SHARES, 4 * ALL, 1),
}


def test_every_convention_by_hand():
    """The losses in round numbers: 8 * 1.325 / 6, 8 * 2.25 / 6, half of it, and 8 / 2 * 423 / 1188."""
    np.testing.assert_allclose((8 * FIRST, 8 * ALL, 4 * ALL, 4 * SIGMOID), (10.6 / 6, 3, 1.5, 47 / 33), rtol=1e-12)
    assert list(ENTRIES) == list(BY_HAND)
    for name, (slots, dropped, gates, balance, even) in BY_HAND.items():
        entry, convention = ENTRIES[name], rosetta.CONVENTIONS[name]
        assert (entry.slots, entry.dropped) == (slots, dropped), name
        np.testing.assert_allclose([*entry.gates, entry.balance, entry.even], [*gates, balance, even], rtol=1e-12,
                                   err_msg=name)
        assert convention.source and convention.order in capacity.ORDERS
    assert {name: convention.coef for name, convention in rosetta.CONVENTIONS.items() if convention.coef} == {
        "GShard (lingvo)": 0.01, "Switch (Mesh TF)": 0.01, "ST-MoE (Mesh TF)": 0.01, "Mixtral": 0.02,
        "OLMoE (transformers)": 0.01, "OLMoE (training)": 0.01, "DeepSeek-V3": 0.0001, "MegaBlocks": 0.1,
        "minimoe": 0.01}  # as published


SLOTS = {  # T, E, K, factor -> what is not whole, and the slots of some systems
    (44, 8, 2, 1.25): {  # 6.875; GShard has no factor: 11; Tutel: 44 / 8 up is 6, 1.25 * 6 = 7.5 down is 7, twice
        "GShard (paper)": 11, "GShard (lingvo)": 8, "Switch (Mesh TF)": 6, "ST-MoE (Mesh TF)": 6,
        "ST-MoE (Flaxformer)": 7, "MegaBlocks": 13, "Tutel": 14, "minimoe": 14},
    (52, 8, 2, 1): {  # 6.5, which lies between 6 and 7, and 6 is even; Tutel: up is 7, twice
        "ST-MoE (Flaxformer)": 6, "Switch (Mesh TF)": 6, "ST-MoE (Mesh TF)": 6, "GShard (lingvo)": 8, "MegaBlocks": 13,
        "minimoe": 13, "Tutel": 14},
    (16, 2, 1, 4): {  # 4 * 16 / 2 = 32; some have no more slots than tokens
        "Switch (Mesh TF)": 16, "ST-MoE (Mesh TF)": 16, "minimoe": 16, "GShard (lingvo)": 32, "ST-MoE (Flaxformer)": 32,
        "MegaBlocks": 32, "Tutel": 32},
    (3, 8, 1, 1.25): {  # 0.47; some have four slots at least, even for fewer tokens
        "Switch (Mesh TF)": 4, "ST-MoE (Mesh TF)": 4, "ST-MoE (Flaxformer)": 4, "minimoe": 1},
}


@pytest.mark.parametrize("batch", SLOTS)
def test_slots_that_are_not_whole_or_out_of_bounds(batch):
    assert {name: rosetta.CONVENTIONS[name].capacity(*batch) for name in SLOTS[batch]} == SLOTS[batch]


def test_the_queue_decides_whose_choices_have_room():
    """By rank the 12 slots of expert 0 are for its first choices in four rounds, and the second choices of (3, 0) have
    none.  By position a round takes four of its 15: three rounds, and the three first choices of the fourth.
    """
    for name, second_choices in (("GShard (paper)", [False] * 8), ("MegaBlocks", [True] * 3 + [False] * 5)):
        kept_TK = ENTRIES[name].kept_TK.reshape(8, 6, 2)
        assert kept_TK[:4, :3, 0].all() and not kept_TK[4:, :3, 0].any()
        assert kept_TK[:, 4, 1].tolist() == second_choices


def test_the_table_leads_with_how_far_the_conventions_are_apart(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    answer, table, more, sources, _ = rosetta.report(list(ENTRIES.values()), detail=True).split("\n\n")
    assert ("12 conventions: 7 to 15 slots per expert where there is a limit, 0 to 54 dropped choices, a balance loss "
            "from 0.0276 to 3.0000.") in " ".join(answer.split())
    lines, details = ({line[:22].strip(): line[22:].split() for line in text.splitlines()[head:]}
                      for text, head in ((table, 3), (more, 2)))
    assert list(lines) == list(details) == list(rosetta.CONVENTIONS)
    assert details["GShard (paper)"] == ["rank", "0.714", "0.286", "57%"]  # 2 * 2/7 = 4/7;  ST-MoE's threshold is 1/5
    assert details["ST-MoE (Mesh TF)"] == ["rank", "0.714", "0.286", "100%"]
    assert lines["ST-MoE (Mesh TF)"][2:] == ["1.7667", "1.0000", "0.01", "0.01"]
    assert lines["Mixtral"] == ["-", "0", "3.0000", "2.0000", "0.02", "0.04"]
    assert all(f"{name}: {convention.source}" in " ".join(sources.split())
               for name, convention in rosetta.CONVENTIONS.items())
    assert rosetta.report(list(ENTRIES.values())).split("\n\n")[:2] == [answer, table]


def test_where_only_the_loss_of_an_even_load_differs_one_loss_is_a_multiple_of_the_other():
    found = {entry.name: entry for entry in rosetta.read(np.random.default_rng(0).normal(size=(48, 8)))}
    for name in ("Mixtral", "OLMoE (transformers)", "OLMoE (training)", "MegaBlocks"):
        assert found[name].balance == pytest.approx(found[name].even * found["minimoe"].balance)
    assert found["Tutel"].balance != pytest.approx(found["minimoe"].balance)  # first choices alone
