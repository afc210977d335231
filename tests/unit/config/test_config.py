"""A configuration that exists is one that can run; an impossible one is refused by field, value and reason."""

import dataclasses
import math
import re

import numpy as np
import pytest

from minimoe import config, names
from minimoe.moe import capacity, losses, routers

CLASSES = config.ModelConfig, config.TrainConfig

COUNTS = {
    config.ModelConfig: ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_hidden", "n_experts", "top_k",
                         "d_dense", "moe_every", "n_groups", "top_groups", "n_devices", "max_sequence"),
    config.TrainConfig: ("n_steps", "batch", "sequence", "groups", "accumulate", "eval_every", "eval_batches",
                         "record_every", "checkpoint_every"),
}
COUNTS_FROM_ZERO = {config.ModelConfig: ("n_shared_experts", "first_dense_layers")}
ABOVE_ZERO = {
    config.ModelConfig: ("rope_theta", "norm_eps", "capacity_factor", "eval_capacity_factor", "gate_scale"),
    config.TrainConfig: ("learning_rate", "adam_eps", "clip_norm"),
}
ZERO_OR_MORE = {
    config.ModelConfig: ("jitter", "bias_rate", *(f"{name}_coef" for name in names.LOSSES)),
    config.TrainConfig: ("weight_decay",),
}

IMPOSSIBLE_MODELS = [
    (dict(n_heads=3, d_model=8), "d_model = 8: must be a multiple of n_heads = 3"),
    (dict(n_heads=4, d_model=12), "d_model = 12: d_model / n_heads = 3 must be even"),
    (dict(n_heads=4, n_kv_heads=3), "n_kv_heads = 3: must divide n_heads = 4"),
    (dict(n_heads=4, n_kv_heads=8), "n_kv_heads = 8: must divide n_heads = 4"),
    (dict(n_experts=4, top_k=5), "top_k = 5: a token cannot have more experts than there are: n_experts = 4"),
    (dict(router="best"), "router = 'best': must be one of softmax_topk, switch, "),
    (dict(drop_order="last"), "drop_order = 'last': must be one of position, rank, priority, random"),
    (dict(drop_order=None), "drop_order = None: must be one of"),
    (dict(renormalize="yes"), "renormalize = 'yes': must be True, False or None"),
    (dict(renormalize=True, top_k=1), "renormalize = True: with top_k = 1 the one gate would be p / p = 1"),
    (dict(tie_embeddings=1), "tie_embeddings = 1: must be True or False"),
    (dict(tie_embeddings=None), "tie_embeddings = None: must be True or False"),
    (dict(global_balance=1), "global_balance = 1: must be True or False"),
    (dict(pad_experts=1), "pad_experts = 1: must be True or False"),
    (dict(pad_experts=None), "pad_experts = None: must be True or False"),
    (dict(pad_experts="yes", router="soft"), "pad_experts = 'yes': must be True or False"),
    (dict(n_layers=2, first_dense_layers=3), "first_dense_layers = 3: there are only n_layers = 2"),
    (dict(router="switch", top_k=2), "top_k = 2: router 'switch' always takes 1"),
    (dict(router="base", top_k=2), "top_k = 2: router 'base' always takes 1"),
    (dict(router="gshard", top_k=1), "top_k = 1: router 'gshard' always takes 2"),
    (dict(router="st_moe", top_k=3), "top_k = 3: router 'st_moe' always takes 2"),
    (dict(jitter=0.1), "jitter = 0.1: router 'softmax_topk' has no use for it; switch would"),
    (dict(bias_rate=0.1), "bias_rate = 0.1: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(n_groups=2), "n_groups = 2: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(gate_scale=2.0), "gate_scale = 2.0: router 'softmax_topk' has no use for it; sigmoid_bias would"),
    (dict(router="hash", renormalize=False), "renormalize = False: router 'hash' has no use for it; softmax_topk, "),
    (dict(router="switch", top_k=1, jitter=1.0), "jitter = 1.0: must be below 1"),
    (dict(router="sigmoid_bias", n_groups=3), "n_groups = 3: must divide n_experts = 8"),
    (dict(router="sigmoid_bias", n_groups=2, top_groups=3), "top_groups = 3: there are only n_groups = 2"),
    (dict(router="sigmoid_bias", n_groups=4, top_groups=1, top_k=3), "top_groups = 1: so few groups have 2 experts"),
    (dict(router="soft", capacity_factor=1.0), "capacity_factor = 1.0: router 'soft' has no assignments to limit"),
    (dict(router="soft", eval_capacity_factor=1.0), "eval_capacity_factor = 1.0: router 'soft' has no assignments"),
    (dict(router="soft", pad_experts=True), "pad_experts = True: router 'soft' has no empty slots"),
    (dict(router="soft", n_shared_experts=2), "n_shared_experts = 2: router 'soft' "),
    (dict(load_coef=0.1), "load_coef = 0.1: the expected load is a matter of noise, which router 'softmax_topk' has"),
    (dict(n_devices=3), "n_devices = 3: must divide n_experts = 8"),
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
    dict(router="gshard", n_experts=1, top_k=1),
    dict(router="sigmoid_bias", n_experts=8, n_groups=8, top_groups=2, top_k=2),
    dict(router="switch", top_k=1, jitter=0),
    dict(router="noisy_topk", load_coef=0.5),
    dict(load_coef=0),
    dict(pad_experts=True),
    dict(pad_experts=True, capacity_factor=0.5, drop_order="rank"),
    dict(pad_experts=False, router="soft"),
    dict(n_layers=2, first_dense_layers=2, moe_every=9, d_dense=1),
    dict(n_experts=8, n_devices=8, device_coef=1.0, global_balance=True),
    *(dict(router=name, top_k=router.top_k or 2) for name, router in names.ROUTERS.items()),
]
POSSIBLE_RUNS = [
    dict(beta1=0, beta2=0.0),
    dict(min_learning_rate=0.1, learning_rate=0.1),
    dict(min_learning_rate=0, weight_decay=0, warmup_steps=0, seed=0),
    dict.fromkeys(COUNTS[config.TrainConfig], 1),
]


def fields_of(table):
    return [pytest.param(cls, name, id=name) for cls, names in table.items() for name in names]


def weights_above_zero(**fields):
    """Name -> weight of the losses that count."""
    return {name: coef for name, coef in config.ModelConfig(**fields).loss_coefs.items() if coef > 0}


def assert_refused(cls, fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cls(**fields)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "2"])
@pytest.mark.parametrize(("cls", "name"), fields_of(COUNTS))
def test_a_count_is_a_whole_number_of_one_or_more(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a whole number, 1 or more")


@pytest.mark.parametrize("value", [-1, 2.0, True, "2", None])
@pytest.mark.parametrize(("cls", "name"), fields_of(COUNTS_FROM_ZERO))
def test_a_count_of_extras_is_a_whole_number_of_zero_or_more(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a whole number, 0 or more")


@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf, True, "1"])
@pytest.mark.parametrize(("cls", "name"), fields_of(ABOVE_ZERO))
def test_a_scale_is_a_finite_number_above_zero(cls, name, value):
    assert_refused(cls, {name: value}, f"{name} = {value!r}: must be a finite number above 0")


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, False, "0"])
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
    assert routers.POLICIES.keys() == names.ROUTERS.keys() - {name for name, r in names.ROUTERS.items() if r.soft}
    assert capacity.ORDERS.keys() == names.DROP_ORDERS.keys()
    assert losses.LOSSES.keys() == names.LOSSES.keys()


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
    model, train = config.preset("tiny", model=dict(top_k=1, vocab_size=9), train=dict(batch=6))
    assert (model.top_k, model.vocab_size, train.batch) == (1, 9, 6)
    assert (model.d_model, train.n_steps) == (plain[0].d_model, plain[1].n_steps)
    assert config.preset("tiny") == plain


@pytest.mark.parametrize("router", names.ROUTERS)
def test_a_preset_with_a_router_that_knows_one_k_has_that_k(router):
    usual = config.preset("tiny")[0].top_k
    assert config.preset("tiny", model=dict(router=router))[0].top_k == (names.ROUTERS[router].top_k or usual)


@pytest.mark.parametrize("router", ["gshard", "st_moe"])
def test_a_preset_with_one_expert_gives_a_router_that_takes_two_the_one_there_is(router):
    assert config.preset("tiny", model=dict(router=router, n_experts=1))[0].top_k == 1


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
    assert weights_above_zero(balance_coef=0.5, z_coef=0.3) == dict(balance=0.5, z=0.3)
    assert weights_above_zero(balance_coef=0.5, z_coef=0.3, n_experts=1, top_k=1) == {}


@pytest.mark.parametrize("fields", [dict(router="soft"), dict(n_layers=2, first_dense_layers=2),
                                    dict(n_layers=2, moe_every=3)])
def test_without_a_router_the_router_losses_weigh_nothing(fields):
    assert weights_above_zero(balance_coef=0.5, entropy_coef=0.3, **fields) == {}


@pytest.mark.parametrize("router", names.ROUTERS)
def test_a_loss_that_is_not_mentioned_weighs_what_the_router_is_used_with(router):
    assert weights_above_zero(router=router, top_k=names.ROUTERS[router].top_k or 2) == names.ROUTERS[router].losses


def test_a_loss_that_is_mentioned_weighs_what_is_said():
    assert weights_above_zero(balance_coef=0, entropy_coef=0.5) == dict(z=0.001, entropy=0.5)
    assert weights_above_zero(router="noisy_topk", load_coef=0.0) == dict(importance=0.1)


@pytest.mark.parametrize(("fields", "kinds"), [
    (dict(n_layers=3), "moe moe moe"),
    (dict(n_layers=3, first_dense_layers=1), "dense moe moe"),
    (dict(n_layers=5, moe_every=2), "dense moe dense moe dense"),
    (dict(n_layers=6, first_dense_layers=1, moe_every=3), "dense dense dense moe dense dense"),
    (dict(n_layers=2, first_dense_layers=2), "dense dense"),
    (dict(n_layers=2, first_dense_layers=1, router="soft"), "dense soft"),
])
def test_every_nth_layer_after_the_first_dense_ones_is_a_mixture(fields, kinds):
    made = config.ModelConfig(**fields)
    assert made.layer_kinds == tuple(kinds.split())
    assert made.moe_layers == tuple(i for i, kind in enumerate(kinds.split()) if kind == "moe")


def test_a_dense_layer_is_as_wide_as_a_tokens_experts_unless_set():
    assert config.ModelConfig(d_hidden=10, top_k=2, n_shared_experts=3).dense_width == 50  # (2 + 3) * 10
    assert config.ModelConfig(d_hidden=10, d_dense=7).dense_width == 7


def test_finer_experts_are_more_and_narrower():
    coarse = config.ModelConfig(d_hidden=12, n_experts=4, top_k=2, n_shared_experts=1)
    fine = config.ModelConfig(d_hidden=4, n_experts=12, top_k=6, n_shared_experts=3)
    assert coarse.finer(3) == fine
    assert coarse.finer(1) == coarse


@pytest.mark.parametrize("parts", [0, -2, 5, 24, 2.0])
def test_experts_are_divided_into_whole_parts(parts):
    with pytest.raises(ValueError, match=f"^finer = {parts}: must divide d_hidden = 12"):
        config.ModelConfig(d_hidden=12).finer(parts)


@pytest.mark.parametrize(("router", "top_k"), [("switch", 1), ("base", 1), ("gshard", 2), ("st_moe", 2)])
def test_a_router_that_knows_one_k_has_no_finer_experts(router, top_k):
    coarse = config.ModelConfig(router=router, top_k=top_k)
    with pytest.raises(ValueError, match=f"^finer = 2: .*router '{router}' always takes {top_k}"):
        coarse.finer(2)
    assert coarse.finer(1) == coarse


@pytest.mark.parametrize("value", [-1e-4, math.nan, "0"])
def test_the_last_learning_rate_is_a_number_of_zero_or_more(value):
    assert_refused(config.TrainConfig, {"min_learning_rate": value},
                   f"min_learning_rate = {value!r}: must be a finite number of 0 or more")


def test_the_last_learning_rate_is_a_tenth_of_the_peak_unless_it_is_given():
    assert config.TrainConfig(learning_rate=0.5).last_learning_rate == 0.05
    assert config.TrainConfig(learning_rate=0.5, min_learning_rate=0.2).last_learning_rate == 0.2
