"""A configuration that exists is one that can run; an impossible one is refused by field, value and reason."""

import dataclasses
import math
import re

import numpy as np
import pytest

from minimoe import config
from minimoe.moe import capacity, routers

CLASSES = config.ModelConfig, config.TrainConfig

COUNTS = {
    config.ModelConfig: ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_hidden", "n_experts", "top_k",
                         "max_sequence"),
    config.TrainConfig: ("n_steps", "batch", "sequence", "accumulate", "eval_every", "eval_batches", "record_every",
                         "checkpoint_every"),
}
ABOVE_ZERO = {
    config.ModelConfig: ("rope_theta", "norm_eps", "capacity_factor", "eval_capacity_factor"),
    config.TrainConfig: ("learning_rate", "adam_eps", "clip_norm"),
}
ZERO_OR_MORE = {
    config.ModelConfig: ("balance_coef", "z_coef"),
    config.TrainConfig: ("weight_decay",),
}

IMPOSSIBLE_MODELS = [
    (dict(n_heads=3, d_model=8), "d_model = 8: must be a multiple of n_heads = 3"),
    (dict(n_heads=4, d_model=12), "d_model = 12: d_model / n_heads = 3 must be even"),
    (dict(n_heads=4, n_kv_heads=3), "n_kv_heads = 3: must divide n_heads = 4"),
    (dict(n_heads=4, n_kv_heads=8), "n_kv_heads = 8: must divide n_heads = 4"),
    (dict(n_experts=4, top_k=5), "top_k = 5: a token cannot have more experts than there are: n_experts = 4"),
    (dict(router="best"), "router = 'best': must be one of softmax_topk"),
    (dict(drop_order="last"), "drop_order = 'last': must be one of position, rank, priority, random"),
    (dict(drop_order=None), "drop_order = None: must be one of"),
    (dict(renormalize="yes"), "renormalize = 'yes': must be True, False or None"),
    (dict(renormalize=True, top_k=1), "renormalize = True: with top_k = 1 the one gate would be p / p = 1"),
    (dict(tie_embeddings=1), "tie_embeddings = 1: must be True or False"),
    (dict(tie_embeddings=None), "tie_embeddings = None: must be True or False"),
]
IMPOSSIBLE_RUNS = [
    (dict(beta1=False), "beta1 = False: must be a finite number of 0 or more"),
    (dict(beta1=1.0), "beta1 = 1.0: must be below 1"),
    (dict(beta2=1.5), "beta2 = 1.5: must be below 1"),
    (dict(beta1=-0.1), "beta1 = -0.1: must be a finite number of 0 or more"),
    (dict(beta2=math.nan), "beta2 = nan: must be a finite number of 0 or more"),
    (dict(beta2=True), "beta2 = True: must be a finite number of 0 or more"),
    (dict(beta1="0.9"), "beta1 = '0.9': must be a finite number of 0 or more"),
    (dict(min_learning_rate=0.2, learning_rate=0.1), "min_learning_rate = 0.2: must not be above learning_rate = 0.1"),
    (dict(seed=-1), "seed = -1: must be a whole number, 0 or more"),
    (dict(seed=1.0), "seed = 1.0: must be a whole number, 0 or more"),
    (dict(seed=True), "seed = True: must be a whole number, 0 or more"),
    (dict(seed=None), "seed = None: must be a whole number, 0 or more"),
    (dict(warmup_steps=2.0), "warmup_steps = 2.0: must be a whole number, 0 or more"),
    (dict(warmup_steps=-1), "warmup_steps = -1: must be"),
    (dict(warmup_steps=True), "warmup_steps = True: must be"),
]
POSSIBLE_MODELS = [
    dict(n_experts=1, top_k=1),
    dict(n_experts=4, top_k=4),
    dict(n_heads=4, d_model=8, n_kv_heads=1),
    dict(n_heads=4, n_kv_heads=4),
    dict(top_k=1, renormalize=False),
    dict(top_k=2, renormalize=False),
    dict(top_k=2, renormalize=True),
    dict(balance_coef=0, z_coef=0),
    dict(capacity_factor=1, eval_capacity_factor=1e-9),
    dict(vocab_size=1, n_layers=1, d_hidden=1, max_sequence=1),
    dict(tie_embeddings=True),
]
POSSIBLE_RUNS = [
    dict(beta1=0, beta2=0.0),
    dict(min_learning_rate=0.1, learning_rate=0.1),
    dict(min_learning_rate=0, weight_decay=0, warmup_steps=0, seed=0),
    dict.fromkeys(COUNTS[config.TrainConfig], 1),
]


def fields_of(table):
    return [pytest.param(cls, name, id=name) for cls, names in table.items() for name in names]


def assert_refused(cls, fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cls(**fields)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
@pytest.mark.parametrize(("cls", "name"), fields_of(COUNTS))
def test_a_count_is_a_whole_number_of_one_or_more(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a whole number, 1 or more")


@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf, True, "1"])
@pytest.mark.parametrize(("cls", "name"), fields_of(ABOVE_ZERO))
def test_a_scale_is_a_finite_number_above_zero(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a finite number above 0")


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, False, "0", None])
@pytest.mark.parametrize(("cls", "name"), fields_of(ZERO_OR_MORE))
def test_a_coefficient_is_a_finite_number_of_zero_or_more(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a finite number of 0 or more")


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE_MODELS)
def test_an_impossible_model_is_refused(fields, message):
    assert_refused(config.ModelConfig, fields, message)


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE_RUNS)
def test_an_impossible_run_is_refused(fields, message):
    assert_refused(config.TrainConfig, fields, message)


@pytest.mark.parametrize("fields", POSSIBLE_MODELS)
def test_a_model_at_the_edge_of_the_possible_is_accepted(fields):
    assert dataclasses.asdict(config.ModelConfig(**fields)).items() >= fields.items()


@pytest.mark.parametrize("fields", POSSIBLE_RUNS)
def test_a_run_at_the_edge_of_the_possible_is_accepted(fields):
    assert dataclasses.asdict(config.TrainConfig(**fields)).items() >= fields.items()


@pytest.mark.parametrize(("cls", "name"), [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)])
def test_a_configuration_is_frozen(cls, name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), name, 1)


def test_a_changed_copy_is_checked_again():
    with pytest.raises(ValueError, match="top_k = 9"):
        dataclasses.replace(config.ModelConfig(n_experts=8), top_k=9)


def test_equal_fields_make_equal_configurations():
    assert config.ModelConfig(top_k=1) == config.ModelConfig(top_k=1) != config.ModelConfig(top_k=2)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_a_default_and_a_help_text(cls):
    for field in dataclasses.fields(cls):
        assert field.default is not dataclasses.MISSING and field.metadata["help"].strip(), field.name


def test_a_help_text_ends_with_the_unit():
    unit = {field.name: field.metadata["help"] for field in dataclasses.fields(config.TrainConfig)}
    assert unit["n_steps"].endswith(" [steps]") and not unit["seed"].endswith("]")


def test_heads_share_the_width_of_the_model():
    assert config.ModelConfig(d_model=24, n_heads=4).d_head == 6  # 24 / 4


def test_key_heads_are_as_many_as_heads_unless_set():
    assert config.ModelConfig(n_heads=4).kv_heads == 4
    assert config.ModelConfig(n_heads=4, n_kv_heads=2).kv_heads == 2


@pytest.mark.parametrize(("top_k", "renormalize", "expected"), [
    (1, None, False), (2, None, True), (3, None, True), (1, False, False), (2, False, False), (2, True, True)])
def test_gates_sum_to_one_from_two_experts_a_token_unless_set(top_k, renormalize, expected):
    assert config.ModelConfig(top_k=top_k, renormalize=renormalize).gates_sum_to_one is expected


def test_every_name_in_the_configuration_is_implemented():
    assert routers.POLICIES.keys() == config.ROUTERS.keys()
    assert capacity.ORDERS.keys() == config.DROP_ORDERS.keys()


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_preset_is_possible_and_its_sequences_fit_the_model(name):
    model, train = config.preset(name)
    assert train.sequence <= model.max_sequence
    assert train.warmup_steps < train.n_steps


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_preset_keeps_its_fields_and_the_defaults_of_the_others(name):
    for made, cls, fields in zip(config.preset(name), CLASSES, config.PRESETS[name], strict=True):
        assert made == cls(**fields)


def test_overrides_win_over_the_preset_once():
    plain = config.preset("tiny")
    model, train = config.preset("tiny", model=dict(top_k=1, vocab_size=9), train=dict(batch=3))
    assert (model.top_k, model.vocab_size, train.batch) == (1, 9, 3)
    assert (model.d_model, train.n_steps) == (plain[0].d_model, plain[1].n_steps)
    assert config.preset("tiny") == plain


def test_an_impossible_override_is_refused():
    with pytest.raises(ValueError, match="top_k = 99"):
        config.preset("tiny", model=dict(top_k=99))


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="^preset = 'huge': must be one of tiny, "):
        config.preset("huge")


@pytest.mark.parametrize("value", [0, 1, 1.0, "yes"])
def test_only_a_truth_value_says_whether_gates_are_renormalised(value):
    with pytest.raises(ValueError, match=f"renormalize = {value!r}: must be True, False or None"):
        config.ModelConfig(renormalize=value)


@pytest.mark.parametrize("fields", [dict(router=[]), dict(drop_order=["position"]), dict(balance_coef=10**400)])
def test_what_cannot_be_looked_up_or_converted_is_refused_too(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        config.ModelConfig(**fields)


def test_a_numpy_number_is_kept_as_a_plain_one():
    assert type(config.ModelConfig(norm_eps=np.float64(1e-5)).norm_eps) is float


def test_with_one_expert_the_router_losses_weigh_nothing():
    assert config.ModelConfig(balance_coef=0.5, z_coef=0.3).loss_coefs == (0.5, 0.3)
    assert config.ModelConfig(balance_coef=0.5, z_coef=0.3, n_experts=1, top_k=1).loss_coefs == (0.0, 0.0)


@pytest.mark.parametrize("value", [-1e-4, math.nan, "0"])
def test_the_last_learning_rate_is_a_number_of_zero_or_more(value):
    assert_refused(config.TrainConfig, {"min_learning_rate": value},
                   f"min_learning_rate = {value!r}: must be a finite number of 0 or more")


def test_the_last_learning_rate_is_a_tenth_of_the_peak_unless_it_is_given():
    assert config.TrainConfig(learning_rate=0.5).last_learning_rate == 0.05
    assert config.TrainConfig(learning_rate=0.5, min_learning_rate=0.2).last_learning_rate == 0.2
