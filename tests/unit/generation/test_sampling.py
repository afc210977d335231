"""Generation: cached logits are those of the full forward pass, and sampling draws from the distribution it says."""

import itertools
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from minimoe import model
from minimoe.generation import decoding, sampling
from tests import small

CONTEXT = replace(small.MODEL, max_sequence=7)
LOGITS = 3 + np.log([0.125, 0.5, 0.125, 0.25])
"""Tokens in order of probability: 1 (1/2), 3 (1/4), then 0 and 2, equal (1/8)."""
MANY = np.tile([1.0, 2.0], 50)


def chance(number):
    """A generator whose every number is the same."""
    return SimpleNamespace(random=lambda: number)


def params_of(config):
    """Random parameters in float64, large enough for texts that vary."""
    return {name: 2 * array for name, array in model.init_params(config, 0, np.float64).items()}


def slow_greedy(config, prompt, n_tokens):
    """The text of the likeliest tokens, by a full forward pass for each; a full context drops its older half.

    Returns it with the logits that each token was chosen by.
    """
    view, text, logits = list(prompt)[-config.max_sequence:], list(prompt), []
    for _ in range(n_tokens):
        logits.append(model.forward(params_of(config), np.array([view]), config)[0][0, -1])
        view, text = [[*tokens, int(np.argmax(logits[-1]))] for tokens in (view, text)]
        if len(view) > config.max_sequence:
            view = view[-max(config.max_sequence // 2, 1):]
    return text, logits


def shares(logit_V=LOGITS, temperature=1.0, top_k=None, top_p=None, n=1848):
    """The share of the numbers from 0 to 1 at which each token is drawn, in units of 1/1848."""
    tokens = [sampling.sample(logit_V, temperature, top_k, top_p, chance((i + 0.5) / n)) for i in range(n)]
    return np.bincount(tokens, minlength=len(logit_V)) / n


def generate(prompt=(1, 2), n_tokens=20, config=CONTEXT, **options):
    return sampling.generate(params_of(config), config, prompt, n_tokens, **options).tolist()


@pytest.mark.parametrize("config, prompt", [
    (CONTEXT, [3, 1]), (CONTEXT, list(range(20))), (replace(small.MODEL, max_sequence=1), [3, 1])],
    ids=["a context of 7", "a long prompt", "a context of 1"])
def test_each_logit_is_that_of_the_tokens_in_view_also_after_some_are_forgotten(config, prompt):
    with mock.patch.object(sampling, "sample", wraps=sampling.sample) as sample:
        text = generate(prompt, 25, config, temperature=0)
    expected, logits = slow_greedy(config, prompt, 25)
    assert text == expected and len(set(text[len(prompt):])) > 1
    np.testing.assert_allclose([call.args[0] for call in sample.call_args_list], logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("max_sequence, n_tokens, rooms, places", [
    # a context of 7 for 2 + 10 tokens: the eighth is too many, so 7 // 2 = 3 are read again, and it goes on from there
    (7, 10, [7, 7], [2, 3, 4, 5, 6, 3, 4, 5]), (7, 5, [7], [2, 3, 4, 5]), (10**6, 5, [7], [2, 3, 4, 5])])
def test_a_prompt_is_read_at_once_and_each_new_token_once(max_sequence, n_tokens, rooms, places):
    with (mock.patch.object(decoding, "start", wraps=decoding.start) as start,
          mock.patch.object(decoding, "step", wraps=decoding.step) as step):
        assert len(generate([3, 1], n_tokens, replace(small.MODEL, max_sequence=max_sequence))) == 2 + n_tokens
    assert [[call.args[-1] for call in called.call_args_list] for called in (start, step)] == [rooms, places]


def test_the_text_is_the_prompt_and_what_the_stream_draws_by_the_seed():
    whole = dict(temperature=1.0, top_k=None, top_p=None, seed=0)
    assert generate([4, 5], 0) == [4, 5]
    assert generate() == generate(**whole) == generate(top_k=32) == generate(top_p=1)
    assert generate(seed=3) == generate(seed=3) != generate(seed=4)
    assert generate(top_k=1) == generate(temperature=0)
    assert list(sampling.stream(params_of(CONTEXT), CONTEXT, [1, 2], 20)) == generate()[2:]
    stream = sampling.stream(params_of(CONTEXT), CONTEXT, [1, 2], 20, 0.7, 5, 0.9, seed=3)
    assert list(stream) == generate(temperature=0.7, top_k=5, top_p=0.9, seed=3)[2:]


@pytest.mark.parametrize("options, expected", [
    ({}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ({"top_k": 1}, [0, 1, 0, 0]),
    ({"top_k": 3}, [1 / 7, 4 / 7, 0, 2 / 7]),  # the equal ones in order of their number
    ({"top_k": 9}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ({"top_p": 0.49}, [0, 1, 0, 0]),
    ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
    ({"top_p": 0.74}, [0, 2 / 3, 0, 1 / 3]),
    ({"top_p": 0.76}, [1 / 7, 4 / 7, 0, 2 / 7]),
    ({"top_p": 0.5, "logit_V": np.zeros(4)}, [1 / 2, 1 / 2, 0, 0]),  # two tokens of 1/4 reach it exactly
    ({"top_k": 3, "top_p": 0.56}, [0, 1, 0, 0]),  # 4/7 = 0.571 of the three, though 1/2 of all
    ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),  # squares: 1/64, 16/64, 1/64, 4/64
    ({"temperature": 0.5, "top_p": 0.72}, [0, 1, 0, 0]),  # 16/22 = 0.727
    ({"temperature": 0.0, "top_k": 3, "top_p": 0.9}, [0, 1, 0, 0]),
    ({"temperature": 1e-2}, [0, 1, 0, 0]),
    ({"temperature": 5e-324}, [0, 1, 0, 0]),
])
def test_shares_of_tokens_by_hand(options, expected):
    np.testing.assert_allclose(shares(**options), expected, rtol=1e-12)


def test_where_a_number_falls_by_hand():
    # four tokens of 1/4: [0, 1/4), [1/4, 1/2), [1/2, 3/4), [3/4, 1);  one that is sure;  of equals the first
    assert [sampling.sample(np.zeros(4), 1.0, None, None, chance(i / 4)) for i in range(4)] == [0, 1, 2, 3]
    for number, (top_k, top_p) in itertools.product((0.0, 1 - 2**-53), ((None, None), (3, 1.0))):
        assert sampling.sample(np.array([-np.inf, 1, -np.inf, -2000]), 1.0, top_k, top_p, chance(number)) == 1
    assert [sampling.sample(MANY, 1.0, 3, None, chance(number)) for number in (0.1, 0.5, 0.9)] == [1, 3, 5]
    ours, numpys = np.random.default_rng(2), np.random.default_rng(2)
    drawn = [sampling.sample(LOGITS, 1.0, None, None, ours) for _ in range(50)]
    assert drawn == [numpys.choice([1, 3, 0, 2], p=[0.5, 0.25, 0.125, 0.125]) for _ in range(50)]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_or_params_that_cannot_be_used_are_refused(broken):
    for options in ((1.0, None, None), (0, None, None), (1.0, 1, None), (0.5, None, 0.1)):
        with pytest.raises(ValueError, match="logit_V is not finite: the parameters"):
            sampling.sample(np.array([0.0, broken, 1.0]), *options, chance(0.5))
    nowhere = params_of(CONTEXT) | {"final.gain_D": np.full(8, broken)}
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="logit_V is not finite: the parameters"):
        sampling.generate(nowhere, CONTEXT, [1], 2, temperature=0)
    with pytest.raises(ValueError, match=r"missing .*layers\.1\."):
        sampling.generate(params_of(replace(small.MODEL, n_layers=1)), small.MODEL, [1], 2)


def test_a_prompt_that_cannot_be_read_is_refused():
    for prompt, message in (
            ([], r"has shape \(0,\)"), ([[1, 2]], r"has shape \(1, 2\)"), ([1.5], "has shape .* dtype float64"),
            ([-1, 1], "has values from -1 to 1"), ([99] + [1] * 20, r"has values from 1 to 99: must be in \[0, 32\)")):
        with pytest.raises(ValueError, match=f"^prompt_S {message}"):
            generate(prompt)


@pytest.mark.parametrize("name, values", [
    ("n_tokens", (-1, 1.5, 10**30)), ("seed", (-1, 1.5)), ("temperature", (-0.1, np.nan, np.inf)), ("top_k", (0, 1.5)),
    ("top_p", (0, 1.01, np.nan))])
def test_an_option_out_of_range_is_refused_before_the_first_token_is_asked_for(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} = {value}: must be "):
            sampling.stream(params_of(CONTEXT), CONTEXT, [1], **dict(n_tokens=1) | {name: value})


def test_a_model_whose_later_tokens_decide_what_becomes_of_earlier_ones_is_refused_with_the_reason():
    ahead = {name: config for name, config in small.BY_ROUTER.items() if not sampling.causal(config)}
    assert ahead.keys() == {"expert_choice", "soft"}
    for name, config in ahead.items():
        with pytest.raises(ValueError, match=f"router = '{name}' cannot generate: it is not causal"):
            generate(config=config)
        assert len(generate(n_tokens=3, config=replace(config, first_dense_layers=2))) == 5  # there is no such layer
    limited = replace(small.MODEL, eval_capacity_factor=2.0)
    with pytest.raises(ValueError, match="eval_capacity_factor = 2.0 cannot generate: the capacity of an expert"):
        generate(config=limited)
    assert len(generate(n_tokens=3, config=replace(limited, first_dense_layers=2))) == 5
