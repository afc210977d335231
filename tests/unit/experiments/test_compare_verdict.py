"""What the comparison of MoE and dense says in the end: worth, savings beside a model of equal size, and the title."""

from pathlib import Path

import numpy as np
import pytest

from minimoe import cost
from minimoe.config import ModelConfig, TrainConfig
from minimoe.experiments import compare, effective_size, wording
from minimoe.plots import figures
from minimoe.training import loop

MOE = ModelConfig(vocab_size=10, d_model=8, n_layers=1, n_heads=2, d_hidden=4, n_experts=8, top_k=2, max_sequence=6)
WHAT = compare.Plan(MOE, TrainConfig(n_steps=100, batch=6, sequence=6, warmup_steps=1), 2, Path("runs"),
                    Path("figures/compare.png"), Path("kept/compare.npz"))
DENSE = ["dense, half of active", "dense, same active", "dense, half of total", "dense, same total",
         "dense, twice total"]
TWINS = {"MoE, 2 of 4": "dense, half of total", "MoE, 2 of 8": "dense, same total",
         "MoE, 2 of 16": "dense, twice total"}


def entry(name, total, flops, *ces, active=None, seconds=10.0, budget="steps"):
    return effective_size.Entry(name, budget, 100, cost.Parameters(total, active or total, 0, 0), flops, seconds, np.array(ces))


def entries(*moe_losses):
    """Dense models with losses 4, 3, 2, 1, 0; MoEs with these; and one at another budget, which is in no line."""
    dense = [entry(name, 1000 * 10 ** i, 1e9 * 4 ** i, 4.0 - i, 4.0 - i) for i, name in enumerate(DENSE)]
    moes = [entry(name, 5000, 4e9, *ces, active=active)
            for name, ces, active in zip(TWINS, moe_losses, (3000, 2000, 1000), strict=True)]
    return [entry("dense, same total", 1_000_000, 1e9, 9.0, 9.0, budget="FLOPs"), *moes, *dense]


@pytest.fixture
def asked(monkeypatch):
    """What savings are asked for; those told are made up."""
    seen = []

    def savings(*options):
        seen.append(options)
        return {"time": 2.0, "memory": 4.0 + len(seen)}

    monkeypatch.setattr(compare, "savings", savings)
    return seen


@pytest.mark.usefixtures("asked")
def test_the_verdict_tells_the_worth_of_each_moe():
    # a dense model of 10^(3 + p) parameters has a loss of 4 - p and takes 4^p GFLOPs
    # 2.5: p = 1.5, 31.6 thousand;  2.0 and 3.0: p = 1.5, of one seed alone 2 and 1;  5.0 is above all
    said = compare.verdict(WHAT, entries((2.5, 2.5), (2.0, 3.0), (5.0, 5.0)), None)
    assert max(map(len, said.splitlines())) <= 118
    few, main, many = said.split("\n\n")[0].replace("\n  ", " ").split("\n")
    assert few == ("MoE, 2 of 4: worth a dense model of 31.6 k parameters (80 % of draws of the seeds: 31.6 k to 31.6 "
                   "k), 10.54 times its active and 6.32 times its total ones.")
    assert main == ("MoE, 2 of 8: worth a dense model of 31.6 k parameters (80 % of draws of the seeds: 10 k to 100 "
                    "k), 15.81 times its active and 6.32 times its total ones.")
    assert many.startswith("MoE, 2 of 16: worth a dense model of at most 1 k parameters")


@pytest.mark.usefixtures("asked")
def test_the_verdict_judges_the_claim_moe_by_moe_and_ends_with_what_it_hangs_on():
    # FLOPs of the dense models of equal loss: 4^1.5 = 8, 4^2.5 = 32 and 4^0 = 1 G, of the MoEs 4 G
    _, said, numbers, few, main, many, caveats, seeds = compare.verdict(
        WHAT, entries((2.5, 2.5), (1.5, 1.5), (5.0, 5.0)), None).split("\n\n")
    assert said.startswith("The claim: ")
    assert [line.split()[-3:] for line in numbers.split("\n")[2:]] == [
        ["60%", "40%", "20%"], ["2.00", "2.00", "2.00"], ["5.00", "6.00", "7.00"], ["2.00", "8.00", "0.25"]]
    assert [line.split("  ")[0] for line in numbers.split("\n")[2:]] == [
        "(active parameters)", "time", "memory", "training FLOPs, beside a dense model of equal loss"]
    assert few.startswith("MoE, 2 of 4, 60% active, outside of the claim. 4 times or more: memory (5.00). Less: time")
    assert " ".join(main.split()) == (
        "MoE, 2 of 8, 40% active, outside of the claim. 4 times or more: memory (6.00), training FLOPs, beside a "
        "dense model of equal loss (8.00). Less: time (2.00).")
    assert many.startswith("MoE, 2 of 16, 20% active, one that the claim is about. 4 times or more: memory (7.00).")
    assert "One recipe for all" in caveats and all(len(line) <= 118 for line in caveats.split("\n"))
    assert seeds == wording.on_seeds(2)


def test_each_moe_is_beside_the_dense_model_of_its_size(asked):
    given = entries((2.5, 2.5), (2.0, 2.0), (5.0, 5.0))
    compare.verdict(WHAT, given, "text")
    assert [what for what, *_ in asked] == [WHAT] * 3 and [text for *_, text in asked] == ["text"] * 3
    for (_, configs, pair, _), (name, twin) in zip(asked, TWINS.items(), strict=True):
        assert configs == (WHAT.sparse()[name], WHAT.dense()[twin])
        assert [(e.name, e.budget) for e in pair] == [(name, "steps"), (twin, "steps")]


@pytest.mark.parametrize("E", [4, 8, 16])
def test_savings_by_hand(monkeypatch, E):
    """Numbers of float32 that a token of one text reads, of n texts of 6 tokens each:

                                                   MoE, 2 of E                      dense, of equal size
    norms 3 * 8, attention 4 * 8 * 8, head 8 * 10  360                              360
    router                                         8 E                              8
    experts of 3 * 8 * 4 = 96                      96 E (1 - (1 - 2 / E)^n)         96 E
    keys and values, a text: 6 * 2 * 8             96 n                             96 n
    """
    name = f"MoE, 2 of {E}"
    config, twin = WHAT.sparse()[name], WHAT.dense()[TWINS[name]]
    peaks = {config: 100, twin: 250}
    monkeypatch.setattr(loop, "new_state", lambda config, training, text: (config, training, text))
    monkeypatch.setattr(loop, "step_once", lambda state, text: (*state, text))

    def peak_bytes(step):
        config, training, *texts = step()
        assert (training, texts) == (WHAT.training, ["text", "text"])
        return peaks[config]

    monkeypatch.setattr(cost, "peak_bytes", peak_bytes)
    pair = entry(name, 1000, 2e9, 2.0, active=300, seconds=6.0), entry(TWINS[name], 1500, 7e9, 2.0, seconds=3.0)
    told = compare.savings(WHAT, (config, twin), pair, "text")

    def read(n):
        return (368 + 96 * E + 96 * n) / (360 + 8 * E + 96 * E * (1 - (1 - 2 / E) ** n) + 96 * n)

    expected = {
        "FLOPs of the routed experts": E / 2, "FLOPs of the whole model": 3.5, "time of a training step": 0.5,
        "memory of a training step": 2.5, "memory of the weights": 1.5, "bytes read for a token of 1 text": read(1),
        "bytes read for a token of 4 texts": read(4), "bytes read for a token of 16 texts": read(16)}
    assert list(told) == list(expected)
    np.testing.assert_allclose(list(told.values()), list(expected.values()))


def test_the_title_says_who_is_ahead_at_equal_steps(monkeypatch):
    titles = []
    monkeypatch.setattr(figures, "save", lambda figure, path: titles.append(figure.get_suptitle()))
    for losses in ((1.5, 1.25), (0.5, 0.25)):  # the dense model of equal size has 1, 1
        compare._draw(WHAT, entries((4.0, 4.0), losses, (4.0, 4.0)))
    assert titles == ["At equal steps the MoE, 2 of 8 is 0.375 nats above a dense model of equal size",
                      "At equal steps the MoE, 2 of 8 is 0.625 nats below a dense model of equal size"]
