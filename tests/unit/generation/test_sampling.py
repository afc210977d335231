"""Generation: cached logits are those of the full forward pass, and sampling draws from the distribution it says."""

from dataclasses import replace

import numpy as np
import pytest

from minimoe import model
from minimoe.config import ModelConfig
from minimoe.generation import decoding, sampling
from minimoe.moe import routers
from minimoe.moe.routers import ROUTERS

CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_hidden=6, n_experts=4, top_k=2,
                     max_sequence=7)
VARIANTS = {
    "sparse": CONFIG,
    "one expert a token": replace(CONFIG, top_k=1),
    "all experts": replace(CONFIG, top_k=4),
    "dense": replace(CONFIG, n_experts=1, top_k=1),
    "tied": replace(CONFIG, tie_embeddings=True),
    "a context of one": replace(CONFIG, max_sequence=1),
}
VARIANTS |= {
    f"router {name}": replace(CONFIG, router=name, top_k=ROUTERS[name].FACTS.top_k or 2)
    for name, policy in routers.POLICIES.items() if policy.FACTS.causal_in_evaluation and name != "softmax_topk"}
VARIANTS |= {
    "first layer dense": replace(CONFIG, first_dense_layers=1),
    "every second layer": replace(CONFIG, moe_every=2, n_shared_experts=1),
}
LOOKING_AHEAD = ["expert_choice", "soft"]
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)

LOGITS = 3 + np.log([0.125, 0.5, 0.125, 0.25])
"""Tokens in order of probability: 1 (1/2), 3 (1/4), then 0 and 2, equal (1/8)."""


def params_of(config):
    """Random parameters in float64, large enough for texts that vary."""
    return {name: 2 * array for name, array in model.init_params(config, 0, np.float64).items()}


def full_logits(params, config, tokens):
    return model.forward(params, np.array([tokens]), config)[0][0]


def slow_greedy(params, config, prompt, n_tokens):
    """The likeliest tokens by a full forward pass each; a full context forgets its older half.

    Returns the text, and the logits that each token was chosen by.
    """
    view, text, logits = list(prompt)[-config.max_sequence:], list(prompt), []
    for _ in range(n_tokens):
        logits.append(full_logits(params, config, view)[-1])
        token = int(np.argmax(logits[-1]))
        view, text = view + [token], text + [token]
        if len(view) > config.max_sequence:
            view = view[-max(config.max_sequence // 2, 1):]
    return text, logits


def shares(temperature=1.0, top_k=None, top_p=None, n=2000):
    """How often each token is drawn; a share of n = 2000 draws has a standard deviation of at most 0.011."""
    rng = np.random.default_rng(0)
    tokens = [sampling.sample(LOGITS, temperature, top_k, top_p, rng) for _ in range(n)]
    return np.bincount(tokens, minlength=4) / n


def generate(prompt=(1, 2), n_tokens=20, config=CONFIG, **options):
    return sampling.generate(params_of(config), config, prompt, n_tokens, **options).tolist()


@each_variant
def test_each_logit_is_that_of_the_tokens_in_view_also_after_some_are_forgotten(config, monkeypatch):
    seen, sample = [], sampling.sample
    monkeypatch.setattr(sampling, "sample", lambda logit_V, *rest: seen.append(logit_V) or sample(logit_V, *rest))
    text = generate([3, 1], 25, config, temperature=0)
    expected, logits = slow_greedy(params_of(config), config, [3, 1], 25)
    assert text == expected
    np.testing.assert_allclose(seen, logits, rtol=1e-12, atol=1e-12)
    assert len(set(text)) > 1


def test_there_is_room_for_the_text_or_the_context_whichever_is_less(monkeypatch):
    rooms, start = [], decoding.start
    monkeypatch.setattr(decoding, "start", lambda *given: rooms.append(given[-1]) or start(*given))
    for config, n_tokens in ((replace(CONFIG, max_sequence=10**6), 5), (CONFIG, 5), (CONFIG, 9)):
        generate([3, 1], n_tokens, config)
    # 2 + 5 tokens; as many; and a context of 7 for 2 + 9 tokens, of which the newer half is read again at the eighth
    assert rooms == [7, 7, 7, 7]


def test_a_prompt_is_read_at_once_and_each_new_token_once(monkeypatch):
    places, step = [], decoding.step
    monkeypatch.setattr(decoding, "step", lambda *given: places.append(given[-1]) or step(*given))
    generate([3, 1], 10)
    # positions after the prompt until the context of 7 is full; then 3 tokens are read again, and it goes on from there
    assert places == [2, 3, 4, 5, 6, 3, 4, 5]


def test_the_context_keeps_its_newer_half_when_it_is_full():
    # a context of 7 and 2 tokens to start with: the eighth token is too many, and 7 // 2 = 3 stay
    params, text = params_of(CONFIG), generate([3, 1], 8, temperature=0)
    assert text[8] == np.argmax(full_logits(params, CONFIG, text[5:8])[-1])
    assert text[9] == np.argmax(full_logits(params, CONFIG, text[5:9])[-1])


def test_a_long_prompt_is_read_from_its_last_tokens_and_returned_whole():
    prompt = np.random.default_rng(0).integers(0, 11, 20).tolist()
    text = generate(prompt, 9, temperature=0)
    assert text == prompt + generate(prompt[-7:], 9, temperature=0)[7:]
    assert text == slow_greedy(params_of(CONFIG), CONFIG, prompt, 9)[0]


def test_the_text_begins_with_the_prompt_and_has_the_length_asked_for():
    text = generate([4, 5, 6], 10)
    assert text[:3] == [4, 5, 6] and len(text) == 13 and set(text) <= set(range(11))


def test_no_tokens_give_the_prompt():
    assert generate([4, 5], 0) == [4, 5]


def test_the_same_seed_writes_the_same_text():
    assert generate(seed=3) == generate(seed=3) != generate(seed=4)


def test_the_defaults_draw_from_the_whole_distribution():
    everything = generate(temperature=1.0, top_k=None, top_p=None, seed=0)
    assert generate() == everything == generate(top_k=11) == generate(top_p=1)
    assert list(sampling.stream(params_of(CONFIG), CONFIG, [1, 2], 20)) == everything[2:]


def test_the_likeliest_one_is_temperature_zero():
    assert generate(top_k=1) == generate(temperature=0)


def test_a_stream_has_the_new_tokens_of_the_text():
    stream = sampling.stream(params_of(CONFIG), CONFIG, [1, 2], 20, 0.7, 5, 0.9, seed=3)
    assert list(stream) == generate([1, 2], 20, temperature=0.7, top_k=5, top_p=0.9, seed=3)[2:]


def test_a_capacity_in_training_alone_does_not_matter():
    assert generate(config=replace(CONFIG, capacity_factor=0.5, drop_order="priority")) == generate()


@pytest.mark.parametrize("options, expected", [
    ({}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ({"top_k": 1}, [0, 1, 0, 0]),
    ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
    ({"top_k": 3}, [1 / 7, 4 / 7, 0, 2 / 7]),  # the equal ones in order of their number
    ({"top_k": 9}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ({"top_p": 0.3}, [0, 1, 0, 0]),
    ({"top_p": 0.49}, [0, 1, 0, 0]),  # one is enough to reach it
    ({"top_p": 0.51}, [0, 2 / 3, 0, 1 / 3]),
    ({"top_p": 0.74}, [0, 2 / 3, 0, 1 / 3]),
    ({"top_p": 0.76}, [1 / 7, 4 / 7, 0, 2 / 7]),
    ({"top_p": 1.0}, [1 / 8, 1 / 2, 1 / 8, 1 / 4]),
    ({"top_k": 3, "top_p": 0.56}, [0, 1, 0, 0]),  # 4/7 = 0.571 of the three, though 1/2 of all
    ({"temperature": 0.5}, [1 / 22, 16 / 22, 1 / 22, 4 / 22]),  # squares: 1/64, 16/64, 1/64, 4/64
    ({"temperature": 0.5, "top_p": 0.72}, [0, 1, 0, 0]),  # 16/22 = 0.727
    ({"temperature": 0.0}, [0, 1, 0, 0]),
    ({"temperature": 0.0, "top_k": 3, "top_p": 0.9}, [0, 1, 0, 0]),
])
def test_shares_of_drawn_tokens_by_hand(options, expected):
    drawn = shares(**options)
    np.testing.assert_allclose(drawn, expected, atol=4 * 0.011)
    np.testing.assert_array_equal(drawn[np.equal(expected, 0)], 0)


def test_top_p_takes_no_more_than_reach_it():
    # four tokens of 1/4, of which two reach 1/2 exactly
    rng = np.random.default_rng(0)
    assert {sampling.sample(np.zeros(4), 1.0, None, 0.5, rng) for _ in range(100)} == {0, 1}


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.5, "top_k": 3, "top_p": 0.8}])
def test_a_draw_is_that_of_numpys_choice_with_the_same_generator(options):
    logit_V, ours, numpys = np.random.default_rng(1).normal(size=9), np.random.default_rng(2), np.random.default_rng(2)
    order_V = sorted(range(9), key=lambda token: -logit_V[token])[:options.get("top_k")]
    p_V = np.exp(logit_V[order_V] / options.get("temperature", 1.0))
    p_V /= p_V.sum()
    n_kept = next(n for n in range(1, 10) if p_V[:n].sum() >= options.get("top_p", 0.999999) or n == len(p_V))
    p_V = p_V[:n_kept] / p_V[:n_kept].sum()
    for _ in range(200):
        token = sampling.sample(logit_V, options.get("temperature", 1.0), options.get("top_k"), options.get("top_p"),
                                  ours)
        assert token == numpys.choice(order_V[:n_kept], p=p_V)


class Chance:
    """A generator whose every number is the same."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


@pytest.mark.parametrize("number, expected", [
    (0.0, 1), (0.49, 1), (0.51, 3), (0.74, 3), (0.76, 0), (0.874, 0), (0.876, 2), (1 - 2**-53, 2)])
def test_where_a_number_falls_by_hand(number, expected):
    # token 1 has [0, 1/2), token 3 [1/2, 3/4), token 0 [3/4, 7/8), token 2 [7/8, 1)
    assert sampling.sample(LOGITS, 1.0, None, None, Chance(number)) == expected


def test_a_number_on_the_border_belongs_to_the_token_behind_it():
    # four tokens of 1/4: [0, 1/4), [1/4, 1/2), [1/2, 3/4), [3/4, 1)
    assert [sampling.sample(np.zeros(4), 1.0, None, None, Chance(i / 4)) for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(number):
    logit_V = np.array([-np.inf, 1.0, -np.inf, -2000.0])
    assert sampling.sample(logit_V, 1.0, None, None, Chance(number)) == 1
    assert sampling.sample(logit_V, 1.0, 3, 1.0, Chance(number)) == 1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_refused(broken):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="logit_V is not finite: the parameters"):
        sampling.sample(np.array([0.0, broken, 1.0]), 1.0, None, None, np.random.default_rng(0))


@pytest.mark.parametrize("temperature", [1e-2, 1e-300, 5e-324])
def test_a_temperature_towards_zero_takes_the_likeliest(temperature):
    np.testing.assert_array_equal(shares(temperature, n=100), [0, 1, 0, 0])


def test_of_equals_the_first_come_first():
    logit_V, rng = np.tile([1.0, 2.0], 50), np.random.default_rng(0)
    assert sampling.sample(logit_V, 0, None, None, rng) == 1
    assert {sampling.sample(logit_V, 1.0, 3, None, rng) for _ in range(100)} == {1, 3, 5}


@pytest.mark.parametrize("prompt, message", [
    ([], r"prompt_S has shape \(0,\)"),
    ([[1, 2]], r"prompt_S has shape \(1, 2\)"),
    ([1.5], "prompt_S has shape .* dtype float64"),
    ([1, 11], r"prompt_S has values from 1 to 11: must be in \[0, 11\)"),
    ([-1, 1], r"prompt_S has values from -1 to 1"),
    ([99] + [1] * 20, "prompt_S has values from 1 to 99"),
])
def test_a_prompt_that_cannot_be_read_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        generate(prompt)


@pytest.mark.parametrize("name, value", [
    ("n_tokens", -1), ("n_tokens", 1.5), ("seed", -1), ("seed", 1.5),
    ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")),
    ("top_k", 0), ("top_k", -1), ("top_k", 1.5),
    ("top_p", 0), ("top_p", 1.01), ("top_p", -0.5), ("top_p", float("nan")),
])
def test_an_option_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}: must be "):
        generate(**{name: value})


def test_params_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="missing .*layers.1.moe.w_up_EDF"):
        sampling.generate(params_of(replace(CONFIG, n_layers=1)), CONFIG, [1], 2)


def test_a_capacity_in_evaluation_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="eval_capacity_factor = 2.0 cannot generate: the room in an expert depends"):
        generate(config=replace(CONFIG, eval_capacity_factor=2.0))


@pytest.mark.parametrize("router", LOOKING_AHEAD)
def test_a_router_that_is_not_causal_is_refused_with_the_reason(router):
    with pytest.raises(ValueError, match=f"router = '{router}' cannot generate: it is not causal"):
        generate(config=replace(CONFIG, router=router))


@pytest.mark.parametrize("router", LOOKING_AHEAD)
def test_a_router_without_a_layer_does_not_matter(router):
    assert len(generate(n_tokens=3, config=replace(CONFIG, router=router, first_dense_layers=2))) == 5


def test_a_stream_refuses_before_its_first_token_is_asked_for():
    with pytest.raises(ValueError, match="temperature"):
        sampling.stream(params_of(CONFIG), CONFIG, [1], 2, temperature=-1)
