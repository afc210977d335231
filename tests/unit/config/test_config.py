"""Every configuration that exists can run; an impossible one is refused by field, value and reason."""

import dataclasses
import math
import re

import numpy as np
import pytest

from minimoe import model
from minimoe.config import PRESETS, ModelConfig, TrainConfig, fields, preset
from minimoe.moe import capacity, losses, routers

FACTS = {name: page.FACTS for name, page in routers.ROUTERS.items()}
COEFS = [f"{name}_coef" for name in losses.LOSSES]

COUNTS = {
    ModelConfig: ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_hidden", "n_experts", "top_k",
                  "d_dense", "moe_every", "n_groups", "top_groups", "n_devices", "max_sequence"),
    TrainConfig: ("n_steps", "batch", "sequence", "groups", "accumulate", "eval_every", "eval_batches", "record_every",
                  "checkpoint_every", "sparsity_every"),
}
COUNTS_FROM_ZERO = {ModelConfig: ("n_shared_experts", "first_dense_layers"), TrainConfig: ("seed",)}
ABOVE_ZERO = {
    ModelConfig: ("rope_theta", "norm_eps", "capacity_factor", "eval_capacity_factor", "gate_scale"),
    TrainConfig: ("learning_rate", "adam_eps", "clip_norm", "sparsity_end"),
}
ZERO_OR_MORE = {ModelConfig: ("jitter", "bias_rate", *COEFS),
                TrainConfig: ("weight_decay", "beta1", "beta2", "min_learning_rate", "sparsity", "drop_fraction")}
TRUTHS = {ModelConfig: ("tie_embeddings", "pad_experts", "global_balance")}


def assert_refused(cls, fields, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cls(**fields)


@pytest.mark.parametrize(("table", "values", "reason"), [
    (COUNTS, [0, -1, 2.0, True, "2"], "must be a whole number, 1 or more"),
    (COUNTS_FROM_ZERO, [-1, 2.0, True, "2", None], "must be a whole number, 0 or more"),
    (ABOVE_ZERO, [0, -0.5, math.nan, math.inf, True, "1"], "must be a finite number above 0"),
    (ZERO_OR_MORE, [-1e-9, math.nan, math.inf, False, "0"], "must be a finite number of 0 or more"),
    (TRUTHS, [1, "yes", None], "must be True or False"),
])
def test_a_field_of_a_kind_refuses_what_is_not_of_the_kind(table, values, reason):
    for cls, names in table.items():
        for name in names:
            for value in values:
                assert_refused(cls, {name: value}, f"{name} = {value!r}: {reason}")


def test_a_count_stops_where_machines_do_and_a_seed_does_not():
    assert ModelConfig(vocab_size=10**9).vocab_size == 10**9
    assert_refused(ModelConfig, {"vocab_size": 10**9 + 1},
                   "vocab_size = 1000000001: is more than any machine can hold; 1,000,000,000 is the limit")
    assert TrainConfig(seed=10**10).seed == 10**10


@pytest.mark.parametrize(("fields", "message"), [
    (dict(n_heads=3, d_model=8), "d_model = 8: must be a multiple of n_heads = 3, unless d_head"),
    (dict(n_heads=4, d_model=12), "d_model = 12: d_model / n_heads = 3 must be even"),
    (dict(d_head=3), "d_head = 3: must be even"),
    (dict(n_heads=4, n_kv_heads=8), "n_kv_heads = 8: must divide n_heads = 4"),
    (dict(norm_eps=1.1), "norm_eps = 1.1: must be at most 1"),
    (dict(n_experts=4, top_k=5), "top_k = 5: a token cannot have more experts than there are: n_experts = 4"),
    (dict(router="best"), f"router = 'best': must be one of {', '.join(FACTS)}"),
    (dict(router=[]), "router = []: must be one of softmax_topk, "),
    (dict(drop_order="last"), f"drop_order = 'last': must be one of {', '.join(capacity.ORDERS)}"),
    (dict(renormalize=1), "renormalize = 1: must be True, False or None"),
    (dict(renormalize=True, top_k=1), "renormalize = True: with top_k = 1 the only gate would be p / p = 1"),
    (dict(n_layers=2, first_dense_layers=3), "first_dense_layers = 3: there are only n_layers = 2"),
    (dict(router="switch", top_k=2), "top_k = 2: router 'switch' always uses 1"),
    (dict(router="gshard", top_k=1), "top_k = 1: router 'gshard' always uses 2"),
    (dict(jitter=0.1), "jitter = 0.1: router 'softmax_topk' does not use it; it is for switch"),
    (dict(router="hash", renormalize=False), "renormalize = False: router 'hash' does not use it; it is for "
                                             "softmax_topk, noisy_topk, gshard, st_moe, sigmoid_bias, sinkhorn"),
    (dict(router="switch", top_k=1, jitter=1.0), "jitter = 1.0: must be below 1"),
    (dict(router="sigmoid_bias", n_groups=3), "n_groups = 3: must divide n_experts = 8"),
    (dict(router="sigmoid_bias", n_groups=2, top_groups=3), "top_groups = 3: there are only n_groups = 2"),
    (dict(router="sigmoid_bias", group_score="best"), "group_score = 'best': must be one of top2, paper"),
    (dict(router="sigmoid_bias", n_groups=4, top_groups=1, top_k=3), "top_groups = 1: so few groups hold 2 experts"),
    (dict(router="soft", capacity_factor=1.0), "capacity_factor = 1.0: router 'soft' has no assignments to limit"),
    (dict(router="soft", eval_capacity_factor=1.0), "eval_capacity_factor = 1.0: router 'soft' has no assignments"),
    (dict(router="soft", pad_experts=True), "pad_experts = True: router 'soft' has no empty slots"),
    (dict(router="soft", n_shared_experts=1), "n_shared_experts = 1: router 'soft' uses every expert for every token"),
    (dict(load_coef=0.1), "load_coef = 0.1: the expected load needs a router with noise, such as noisy_topk; router "
                          "'softmax_topk' has none"),
    (dict(balance_coef=10**400), "balance_coef = 1000"),
    (dict(n_devices=3), "n_devices = 3: must divide n_experts = 8"),
    (dict(device_coef=0.1), "n_devices = 1: the device loss of a single device is always 1"),
])
def test_an_impossible_model_is_refused(fields, message):
    assert_refused(ModelConfig, fields, message)


@pytest.mark.parametrize(("fields", "message"), [
    (dict(batch=12, groups=5), "groups = 5: must divide batch = 12"),
    (dict(beta1=1.0), "beta1 = 1.0: must be below 1"),
    (dict(beta2=1.0), "beta2 = 1.0: must be below 1"),
    (dict(min_learning_rate=0.2, learning_rate=0.1), "min_learning_rate = 0.2: must not be above learning_rate = 0.1"),
    (dict(warmup_steps=2.0), "warmup_steps = 2.0: must be a whole number, 0 or more"),
])
def test_an_impossible_run_is_refused(fields, message):
    assert_refused(TrainConfig, fields, message)


@pytest.mark.parametrize("fields", [
    dict(n_experts=4, top_k=4, n_heads=4, d_model=8, n_kv_heads=1, norm_eps=1),
    dict(vocab_size=1, n_layers=1, d_hidden=1, max_sequence=1, n_kv_heads=4, **dict.fromkeys(COEFS[:2], 0)),
    dict(top_k=1, renormalize=False, capacity_factor=1, eval_capacity_factor=1e-9),
    dict(top_k=2, renormalize=True, load_coef=0, tie_embeddings=True),
    dict(router="gshard", n_experts=1, top_k=1),
    dict(router="sigmoid_bias", n_experts=8, n_groups=8, top_groups=2, top_k=2),
    dict(router="switch", top_k=1, jitter=0),
    dict(router="noisy_topk", load_coef=0.5),
    dict(pad_experts=True, capacity_factor=0.5, drop_order="rank"),
    dict(n_layers=2, first_dense_layers=2, moe_every=9, d_dense=1),
    dict(n_experts=8, n_devices=2, device_coef=1.0, global_balance=True),
    dict(n_experts=1, top_k=1, device_coef=1.0),
])
def test_a_model_at_the_edge_of_the_possible_is_accepted(fields):
    assert dataclasses.asdict(ModelConfig(**fields)).items() >= fields.items()


@pytest.mark.parametrize("fields", [
    dict(beta1=0, beta2=0.0, min_learning_rate=0.1, learning_rate=0.1),
    dict(min_learning_rate=0, weight_decay=0, warmup_steps=0, seed=0),
    dict.fromkeys(COUNTS[TrainConfig], 1),
])
def test_a_run_at_the_edge_of_the_possible_is_accepted(fields):
    assert dataclasses.asdict(TrainConfig(**fields)).items() >= fields.items()


@pytest.mark.parametrize("router", FACTS)
def test_a_router_takes_its_own_options_and_none_of_the_others(router):
    values = {"renormalize": False, "jitter": 0.2, "bias_rate": 0.1, "n_groups": 2, "gate_scale": 2.0}
    own, alone = FACTS[router].options, dict(router=router, top_k=FACTS[router].top_k or 2)
    ModelConfig(**alone, **{option: value for option, value in values.items() if option in own})
    for option in values.keys() - set(own):
        assert_refused(ModelConfig, alone | {option: values[option]},
                       f"{option} = {values[option]}: router {router!r} does not use it; it is for ")


@pytest.mark.parametrize("cls", [ModelConfig, TrainConfig])
def test_a_configuration_is_frozen_and_a_changed_copy_is_checked_again(cls):
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cls(), field.name, 1)
    with pytest.raises(ValueError, match=" = 0: "):
        dataclasses.replace(cls(), **{COUNTS[cls][0]: 0})


def test_a_help_text_ends_with_the_unit_if_there_is_one():
    text = {field.name: field.metadata["help"] for field in dataclasses.fields(TrainConfig)}
    assert text["n_steps"] == "optimizer steps [steps]"
    assert text["seed"] == "seed of the initial weights and of the order of the data"


def test_the_help_of_a_loss_names_the_weights_that_routers_have_unless_it_is_set():
    text = {field.name: field.metadata["help"] for field in dataclasses.fields(ModelConfig)}
    assert text["z_coef"].endswith("(ST-MoE); if not set: 0.001 for softmax_topk, st_moe, 0 for other routers [1]")
    assert text["entropy_coef"].endswith("overconfidence; if not set: 0 for all routers [1]")
    assert [name for name in text if name.endswith("_coef")] == COEFS


def test_a_numpy_number_is_kept_as_a_plain_one():
    assert type(ModelConfig(norm_eps=np.float64(1e-5)).norm_eps) is float


def test_heads_share_the_width_of_the_model():
    config = ModelConfig(d_model=24, n_heads=4)
    assert (config.head_width, config.kv_heads) == (6, 4)  # 24 / 4; as many key heads as heads
    assert dataclasses.replace(config, n_kv_heads=2).kv_heads == 2
    assert ModelConfig(d_model=24, n_heads=5, d_head=8).head_width == 8  # 5 heads of 8 next to a width of 24


@pytest.mark.parametrize(("top_k", "renormalize", "expected"), [
    (1, None, False), (2, None, True), (1, False, False), (2, False, False), (2, True, True)])
def test_gates_sum_to_one_from_two_experts_per_token_unless_set(top_k, renormalize, expected):
    assert ModelConfig(top_k=top_k, renormalize=renormalize).gates_sum_to_one is expected


def weights_above_zero(**fields):
    """Name -> weight of the losses that count."""
    return {name: coef for name, coef in ModelConfig(**fields).loss_coefs.items() if coef > 0}


@pytest.mark.parametrize(("fields", "expected"), [
    ({}, dict(balance=0.01, z=0.001)),
    (dict(router="noisy_topk"), dict(importance=0.1, load=0.1)),
    (dict(router="noisy_topk", load_coef=0.0), dict(importance=0.1)),
    (dict(balance_coef=0, entropy_coef=0.5), dict(z=0.001, entropy=0.5)),
    (dict(balance_coef=0.5, n_experts=1, top_k=1), {}),  # nothing to route
    (dict(balance_coef=0.5, router="soft"), {}),
    (dict(balance_coef=0.5, n_layers=2, moe_every=3), {}),
])
def test_a_loss_weighs_what_is_set_or_else_what_its_router_is_used_with(fields, expected):
    assert weights_above_zero(**fields) == expected


@pytest.mark.parametrize(("fields", "kinds"), [
    (dict(n_layers=3), "moe moe moe"),
    (dict(n_layers=3, first_dense_layers=1), "dense moe moe"),
    (dict(n_layers=5, moe_every=2), "dense moe dense moe dense"),
    (dict(n_layers=6, first_dense_layers=1, moe_every=3), "dense dense dense moe dense dense"),
    (dict(n_layers=2, first_dense_layers=1, router="soft"), "dense soft"),
])
def test_every_nth_layer_after_the_first_dense_ones_is_a_mixture(fields, kinds):
    config = ModelConfig(**fields)
    assert config.layer_kinds == tuple(kinds.split())
    assert config.moe_layers == tuple(i for i, kind in enumerate(kinds.split()) if kind == "moe")


def test_a_dense_layer_is_as_wide_as_the_experts_of_a_token_unless_set():
    assert ModelConfig(d_hidden=10, top_k=2, n_shared_experts=3).dense_width == 50  # (2 + 3) * 10
    assert ModelConfig(d_hidden=10, d_dense=7).dense_width == 7


def test_finer_experts_are_more_and_narrower():
    coarse = ModelConfig(d_hidden=12, n_experts=4, top_k=2, n_shared_experts=1)
    assert coarse.finer(3) == ModelConfig(d_hidden=4, n_experts=12, top_k=6, n_shared_experts=3)
    assert coarse.finer(1) == coarse
    for parts in (0, -2, 5, 24, 2.0):
        with pytest.raises(ValueError, match=f"^finer = {parts}: must divide d_hidden = 12"):
            coarse.finer(parts)
    with pytest.raises(ValueError, match="^finer = 2: .*router 'gshard' always uses 2"):
        ModelConfig(router="gshard").finer(2)
    assert ModelConfig(router="gshard").finer(1) == ModelConfig(router="gshard")


@pytest.mark.parametrize(("n_steps", "warmup_steps"), [(1, 0), (20, 10), (199, 99), (200, 100), (1000, 100)])
def test_the_learning_rate_rises_over_100_steps_or_half_of_a_shorter_run_unless_it_is_said(n_steps, warmup_steps):
    assert TrainConfig(n_steps=n_steps).warmup_steps == warmup_steps and TrainConfig(warmup_steps=0).warmup_steps == 0


def test_the_last_learning_rate_is_a_tenth_of_the_peak_unless_it_is_given():
    assert TrainConfig(learning_rate=0.5).last_learning_rate == 0.05
    assert TrainConfig(learning_rate=0.5, min_learning_rate=0.2).last_learning_rate == 0.2


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_fields_and_its_sequences_fit_the_model(name):
    model, train = preset(name)
    assert (model, train) == (ModelConfig(**PRESETS[name][0]), TrainConfig(**PRESETS[name][1]))
    assert train.sequence <= model.max_sequence and train.warmup_steps < train.n_steps


def test_overrides_win_over_the_preset_once():
    plain = preset("tiny")
    model, train = preset("tiny", model=dict(top_k=1, vocab_size=9), train=dict(batch=6))
    assert (model, train) == (dataclasses.replace(plain[0], top_k=1, vocab_size=9),
                              dataclasses.replace(plain[1], batch=6))
    assert preset("tiny") == plain
    with pytest.raises(ValueError, match="top_k = 99"):
        preset("tiny", model=dict(top_k=99))
    with pytest.raises(ValueError, match="^preset = 'huge': must be one of tiny, "):
        preset("huge")


@pytest.mark.parametrize(("name", "fields", "top_k"), [
    ("tiny", dict(router="switch"), 1), ("routers", dict(router="gshard"), 2),
    ("tiny", dict(router="gshard", n_experts=1), 1), ("tiny", dict(router="hash"), 2)])
def test_a_preset_with_a_router_that_knows_one_k_has_that_k(name, fields, top_k):
    assert preset(name, model=fields)[0].top_k == top_k


def test_with_another_number_of_experts_a_model_keeps_its_parameters():
    """A dense layer is by default as wide as the experts of a token: then it stays so."""
    config = ModelConfig(n_layers=2, first_dense_layers=1, n_shared_experts=1)
    changed = config.with_top_k(3)
    assert (changed.top_k, changed.dense_width) == (3, config.dense_width)
    assert model.weights(changed) == model.weights(config)


@pytest.mark.parametrize(("train", "warmup_steps"), [
    ({}, 20), (dict(n_steps=30), 15), (dict(n_steps=1), 0), (dict(n_steps=500), 20),
    (dict(n_steps=30, warmup_steps=25), 25)])
def test_fewer_steps_than_those_of_the_preset_have_a_warm_up_of_at_most_half(train, warmup_steps):
    assert preset("tiny", train=train)[1].warmup_steps == warmup_steps


def test_long_lists_in_messages_are_cut_in_the_order_of_numbers():
    assert fields.listed([11, 9, 10, 2], 3) == "2, 9, 10 and 1 more" and fields.listed(["b", "a"]) == "a, b"
