"""Evaluation: the same pieces of the held-out text at every call, and numbers equal to loops over its routings."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from minimoe import model
from minimoe.moe import telemetry
from minimoe.training import data, evaluation, record
from tests import small

TRAINING = replace(small.TRAINING, eval_batches=8)
DROPS = replace(small.MODEL, eval_capacity_factor=0.7)
PARAMS = small.in_float64(small.new()).params


def routed_batches(config, params=PARAMS):
    """(domain, batch, routings) of an evaluation: two batches of each of four texts, drawn as evaluation draws them."""
    for domain, stream in enumerate(small.CORPUS.held_out):
        rng = np.random.default_rng(0)
        for _ in range(2):
            batch = data.sample([stream], rng, TRAINING.batch, TRAINING.sequence)
            yield domain, batch, model.forward(params, batch.tokens_BS, config)[1]


def test_losses_by_hand_on_texts_of_one_character():
    # every piece of such a text is the same, so one will do; 30 and 90 characters weigh 1 to 3
    config = replace(small.MODEL, n_layers=1, eval_capacity_factor=0.5, balance_coef=10.0)
    params = small.in_float64(small.new(config)).params
    held_out = tuple(np.full(length, token) for token, length in ((3, 30), (5, 90)))
    text = data.Corpus(small.CORPUS.tokenizer, ("short", "long"), (np.full(50, 9),) * 2, held_out)
    result = evaluation.evaluate(params, text, config, TRAINING)
    pieces = [np.full((TRAINING.batch, TRAINING.sequence), token) for token in (3, 5)]
    ce_domain = [small.slow_ce(params, config, piece, piece) for piece in pieces]
    np.testing.assert_allclose(result["ce_domain"], ce_domain, rtol=1e-12)
    assert result["ce"] == pytest.approx((ce_domain[0] + 3 * ce_domain[1]) / 4, rel=1e-12)
    # half the room for all: of an expert that all 24 tokens want, 24 * 2 * 0.5 / 4 = 6 are kept
    assert result["drop"] == pytest.approx(18 / 24, rel=1e-12)
    assert [sorted(load_E.tolist()) for (load_E,) in result["load"]] == [[0, 0, 0.5, 0.5]] * 2


def test_counts_equal_a_loop_over_all_assignments():
    counts = {"token": np.zeros((2, 32, 4)), "position": np.zeros((2, 8, 4)), "domain": np.zeros((2, 4, 4))}
    dropped_LS = np.zeros((2, 8))
    for domain, batch, routings in routed_batches(DROPS):
        for layer, r in enumerate(routings):
            for token, expert, kept in zip(r.token_A, r.expert_A, r.kept_A, strict=True):
                counts["token"][layer, batch.tokens_BS.ravel()[token], expert] += 1
                counts["position"][layer, token % 8, expert] += 1
                counts["domain"][layer, domain, expert] += 1
                dropped_LS[layer, token % 8] += not kept
    result = evaluation.evaluate(PARAMS, small.CORPUS, DROPS, TRAINING)
    for label, count in counts.items():
        expected = [telemetry.mutual_information(of_layer) for of_layer in count]
        np.testing.assert_allclose(result[f"information_{label}"], expected, rtol=1e-12)
    load = counts["domain"] / counts["domain"].sum(axis=2, keepdims=True)
    np.testing.assert_allclose(result["load"], load.swapaxes(0, 1), rtol=1e-12)
    drop_position = dropped_LS / counts["position"].sum(axis=2)
    np.testing.assert_allclose(result["drop_position"], drop_position, rtol=1e-12)
    assert result["drop"] == pytest.approx(drop_position.mean(), rel=1e-12) != 0


@pytest.mark.parametrize("config, n_bytes", [(small.MODEL, 1), (small.BY_ROUTER["expert_choice"], 1),
                                             (replace(small.MODEL, n_experts=9), 2)], ids=["top k", "choice", "nine"])
def test_the_experts_of_the_first_tokens_of_each_domain_are_kept_as_bits(config, n_bytes, monkeypatch):
    monkeypatch.setattr(record, "PROBE", 5)
    params = small.in_float64(small.new(config)).params
    firsts = list(routed_batches(config, params))[::2]
    expected = [[telemetry.chosen(r)[:5] for r in routings] for _, _, routings in firsts]
    packed = evaluation.evaluate(params, small.CORPUS, config, TRAINING)["experts"]
    assert packed.dtype == np.uint8 and packed.shape == (2, 4 * 5, n_bytes)
    unpacked = np.unpackbits(packed, axis=2, count=config.n_experts)
    np.testing.assert_array_equal(unpacked, np.concatenate(expected, axis=1))


@pytest.mark.parametrize("eval_batches, domains", [(4, [0, 1, 2, 3]), (5, [0, 0, 1, 1, 2, 2, 3, 3]), (1, [0, 1, 2, 3])])
def test_batches_are_spread_over_the_domains(eval_batches, domains):
    with mock.patch.object(data, "sample", wraps=data.sample) as sample:
        evaluation.evaluate(PARAMS, small.CORPUS, small.MODEL, replace(TRAINING, eval_batches=eval_batches))
    assert [call.args[0][0] is small.CORPUS.held_out[domain]
            for call, domain in zip(sample.call_args_list, domains, strict=True)] == [True] * len(domains)


@pytest.mark.parametrize("config", [small.RANDOM_DROPS, small.BY_ROUTER["noisy_topk"]], ids=["random drops", "noise"])
def test_every_call_gives_the_same_and_changes_nothing(config):
    state = small.trained(config)
    before = small.numbers(state)
    first, second = (evaluation.evaluate(state.params, small.CORPUS, config, state.train_config) for _ in range(2))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    assert small.numbers(state) == before
