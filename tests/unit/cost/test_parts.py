"""Parameters: the effect of each key of a description, by hand; our models compared with their arrays."""

from collections import Counter
from dataclasses import fields

import pytest

from minimoe import cost, model
from minimoe.cost import model_files, ours, parts
from minimoe.cost.architecture import Architecture
from minimoe.moe import experts
from tests.unit.cost.covering import BY_ROUTER, SHAPES

# attention 6 * (4 + 2 * 2) * 3 + 4 * 3 * 6 = 216; norms 12; router 30; an expert 3 * 6 * 7 = 126; the shared one 72;
# so a layer has 216 + 12 + 30 + 5 * 126 + 72 = 960, and active 582.  Tables of 66, and a last norm of 6.
BASE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 3, "n_routed_experts": 5,
        "top_k": 2, "expert_hidden": 7, "n_shared_experts": 1, "shared_hidden": 4}
LATENT = {"kv_lora_rank": 5, "qk_nope_head_dim": 2, "qk_rope_head_dim": 1, "v_head_dim": 2}
EFFECTS = [
    # changes; more parameters in all, and active
    ({"vocab": 12}, 2 * 6, 12), ({"n_layers": 3}, 960, 582), ({"n_heads": 2}, -2 * (6 * 2 * 3 + 2 * 3 * 6), -144),
    ({"n_kv_heads": None}, 2 * 2 * 6 * 2 * 3, 144), ({"head_dim": 2}, -2 * (6 * 8 + 4 * 6), -144),
    # tables 2 * 11; a layer: attention 7 * 24 + 84 = 252, norms 14, router 35, five of 147, shared 84: 1120
    ({"d_model": 7}, 22 + 2 * 160 + 1, 22 + 2 * (1120 - 3 * 147 - 582) + 1),
    # queries 6 * 4 * 3 = 72; keys and values 6 * (5 + 1) + 5 * 4 * (2 + 2) = 116; back 4 * 2 * 6 = 48; a norm of 5
    ({"mla": LATENT}, 2 * (72 + 116 + 48 + 5 - 216), 50),
    # queries by way of 3: 6 * 3 + 3 * 12 = 54, and a norm of 3; biases of the narrow vectors 3 + 5 + 1
    ({"mla": {**LATENT, "q_lora_rank": 3}}, 2 * (54 + 116 + 48 + 8 - 216), 20),
    ({"mla": {**LATENT, "q_lora_rank": 3}, "qkv_bias": True}, 20 + 2 * 9, 38),
    # keys and values 6 * (6 + 1) + 6 * 16 = 138 and a norm of 6
    ({"mla": {**LATENT, "kv_lora_rank": 6}}, 2 * (72 + 138 + 48 + 6 - 216), 96),
    # queries 6 * 4 * 4 = 96; keys and values 36 + 5 * 4 * 5 = 136
    ({"mla": {**LATENT, "qk_nope_head_dim": 3}}, 2 * (96 + 136 + 48 + 5 - 216), 138),
    # queries 96; keys and values 6 * 7 + 80 = 122
    ({"mla": {**LATENT, "qk_rope_head_dim": 2}}, 2 * (96 + 122 + 48 + 5 - 216), 110),
    # keys and values 36 + 5 * 4 * 5 = 136; back 72
    ({"mla": {**LATENT, "v_head_dim": 3}}, 2 * (72 + 136 + 72 + 5 - 216), 138),
    ({"mla": LATENT, "qkv_bias": True}, 50 + 2 * (12 + 5 + 1), 86),  # of queries and of the narrow vectors
    # values 6 * 2 * 2 = 24 and not 36, back 4 * 2 * 6 = 48 and not 72; biases of 12 + 6 + 4
    ({"v_head_dim": 2}, -2 * 36, -72), ({"v_head_dim": 2, "qkv_bias": True}, -72 + 2 * 22, -28),
    # one of two layers: queries, keys, values and gate 4 * 6 * 12, back 72, a norm of 12
    ({"attention": ["window", "linear"], "window": 9}, 288 + 72 + 12 - 216, 156),
    ({"attention": ["linear"], "v_head_dim": 2}, 2 * (6 * 4 * (3 + 3 + 2 + 2) + 48 + 8 - 216), 2 * 80),
    ({"qk_norm": True}, 2 * (4 + 2) * 3, 36), ({"qk_norm": "per head"}, 2 * 2 * 3, 12),
    ({"qkv_bias": True}, 2 * 8 * 3, 48), ({"sinks": "1 per head"}, 2 * 4, 8),
    ({"n_routed_experts": 6}, 2 * (6 + 126), 12), ({"top_k": 3}, 0, 2 * 126),
    ({"expert_hidden": 8}, 2 * 5 * 18, 2 * 2 * 18), ({"router": "noisy top-k, softmax over top-k"}, 2 * 30, 60),
    ({"router": "hash"}, -2 * 30, -60), ({"router": "sigmoid + bias, normalized"}, 0, 0),
    ({"soft_slots": 3}, 2 * (3 * 6 + 1 - 30), -22),  # and its scale
    ({"n_shared_experts": 2}, 2 * 72, 144), ({"n_shared_experts": 0, "shared_hidden": None}, -144, -144),
    ({"shared_hidden": 5}, 2 * 18, 36), ({"shared_hidden": None}, 2 * 54, 108), ({"shared_gate": "sigmoid"}, 12, 12),
    ({"dense_first_layers": 1, "dense_ffn_hidden": 11}, 198 - 732, 198 - 354),
    ({"moe_every_n": 2, "dense_ffn_hidden": 10}, 180 - 732, 180 - 354),
    ({"dense_layers": [1], "dense_ffn_hidden": 10}, 180 - 732, 180 - 354), ({"n_norms": 1}, -2 * 6, -12),
    ({"ffn_type": "relu"}, -2 * 6 * 7 * 5 - 2 * 6 * 4, -2 * 6 * 7 * 2 - 48), ({"norm": "without weights"}, -30, -30),
    ({"n_norms": 4, "norm": "LayerNorm", "biases": "norms"}, 2 * 2 * 6 + 9 * 6, 78),
    # a layer: attention 24 + 6, router 5, an expert 2 * 7 + 6 = 20, shared 2 * 4 + 6 = 14, norms 12
    ({"biases": True}, 2 * (30 + 5 + 100 + 14 + 12) + 6 + 11, 2 * (30 + 5 + 40 + 14 + 12) + 6 + 11),
    ({"biases": True, "norm": "RMSNorm"}, 2 * (30 + 5 + 100 + 14) + 11, 2 * (30 + 5 + 40 + 14) + 11),
    ({"biases": False}, 0, 0), ({"biases": "attention"}, 2 * 30, 60), ({"biases": "qkv"}, 2 * 24, 48),
    ({"biases": "router", "router": "noisy"}, 80, 80), ({"biases": "shared", "n_shared_experts": 2}, 2 * 100, 200),
    ({"biases": "router+head"}, 2 * 5 + 11, 21), ({"biases": "all but norms+head"}, 2 * 149, 2 * 89),
    ({"biases": "dense", "dense_first_layers": 1, "dense_ffn_hidden": 10}, 206 - 732, 206 - 354),
    ({"tied_embeddings": True}, -66, -66), ({"tied_embeddings": True, "biases": "head"}, -55, -55),
    ({"pos": "learned", "ctx": 9}, 9 * 6, 54), ({"pos": "relative"}, 128, 128),
    # a second attention and its norm in the decoder, a second last norm, and relative positions in each stack
    ({"encoder_decoder": "1+1"}, 216 + 6 + 6 + 2 * 128, 484),
    ({"encoder_decoder": "1+1", "pos": "rotary", "qk_norm": "per head"}, 216 + 6 + 6 + 3 * 6, 246),
    ({"encoder_decoder": "1+1", "n_norms": 4}, 216 + 6 + 6 + 2 * 128 + 2 * 2 * 6, 508),
]


def described(**changes):
    """The Architecture of BASE with changes; latent attention has its own widths."""
    base = {**BASE, "head_dim": None} if "mla" in changes else BASE
    return model_files.read_architecture({**base, **changes})


@pytest.mark.parametrize("changes, total, active", [({}, 0, 0), *EFFECTS], ids=str)
def test_a_key_counts_for_what_it_says(changes, total, active):
    counted = parts.parameters(described(**changes))
    assert (counted.total, counted.active) == (2 * 960 + 138 + total, 2 * 582 + 138 + active)
    moved = {name for changes, *more in EFFECTS if any(more) for name in changes}
    assert moved == {f.name for f in fields(Architecture)}  # every key has an effect here


@pytest.mark.parametrize("stacks, first, n, dense, kinds", [
    (None, 0, 2, [], "dmdmdm"), ("3+3", 1, 2, None, "ddm ddm"), ("1+5", 2, 3, None, "d ddddm"),
    (None, 1, 2, [], "ddmdmd"), (None, 0, 1, [3, 0], "dmmdmm"), (None, 0, 2, [0, 3], "dmdddm")])
def test_layers_are_counted_from_the_first_of_each_stack(stacks, first, n, dense, kinds):
    arch = described(n_layers=6, encoder_decoder=stacks, dense_first_layers=first, moe_every_n=n, dense_layers=dense,
                     dense_ffn_hidden=10)
    assert "".join(kind[0] for kind in arch.kinds) == kinds.replace(" ", "")


def test_the_products_of_a_token_by_hand():
    # multiply-adds are the matrices: 216 and 30 of a layer, two experts of 126, the shared one 72 and its gate 6; the
    # head is a product if it is tied too.  Soft MoE: three of 6 x 3, to scores, to slots and back
    arch = described(shared_gate="sigmoid", biases="experts+router")
    found = {part.name: part.products for part in parts.parts(arch)}
    assert found == {"embedding": 0, "norms": 0, "attention": 216, "router": 30, "experts": 252, "shared experts": 78,
                     "head": 66}
    found = {part.name: part.products for part in parts.parts(described(soft_slots=3, tied_embeddings=True))}
    assert (found["router"], found["head"]) == (3 * 6 * 3, 66)


def test_the_parts_of_a_decoder_leave_out_what_is_in_its_cache():
    # one of two layers; its second attention has 2 * 6 * 2 * 3 = 72 less, for keys and values of the encoder's sequence
    arch = described(encoder_decoder="1+1")
    whole, used = ([(part.total, part.active, part.products) for part in listed if (part.layer, part.name) == (
        1, "attention")] for listed in (parts.parts(arch), parts.decoder_parts(arch)))
    assert (whole, used) == ([(432,) * 3], [(432 - 72,) * 3])
    assert {part.layer for part in parts.decoder_parts(arch)} == {None, 1}
    assert parts.decoder_parts(described()) == parts.parts(described())


PART_OF = {"embed": "embedding", "final": "norms", "head": "head", "attention": "attention", "dense": "dense"}


def part_of(name):
    """(layer, part) of the array of this name."""
    words = name.split(".")
    layer = int(words[1]) if words[0] == "layers" else None
    if words[-1] == "gain_D":
        return layer, "norms"
    if "shared" in words:
        return layer, "shared experts"
    if words[-1] in experts.NAMES:
        return layer, "experts"
    return layer, PART_OF.get(words[0 if layer is None else 2], "router")


@pytest.mark.parametrize("config", (BY_ROUTER | SHAPES).values(), ids=BY_ROUTER | SHAPES)
def test_every_part_of_ours_has_the_numbers_of_its_arrays(config):
    arch, arrays, found = ours.architecture(config), Counter(), Counter()
    for name, array in model.init_params(config).items():
        arrays[part_of(name)] += array.size
    for part in parts.parts(arch):
        found[part.layer, part.name] += part.total
    assert {at: n for at, n in found.items() if n} == arrays
    counted = cost.count_parameters(config)
    of_experts = sum(n for (_, name), n in arrays.items() if name == "experts")
    assert counted.total == sum(arrays.values())
    assert counted.active * config.n_experts == counted.total * config.n_experts - of_experts * (
        config.n_experts - config.top_k)
    assert arch.kinds == tuple("dense" if kind == "dense" else "moe" for kind in config.layer_kinds)


def test_a_part_is_shown_as_dense_if_tokens_have_no_choice():
    names = ["experts", "shared experts", "router"]
    for slots, shown in ((0, ["dense", "dense", "router"]), (2, names)):
        arch = described(n_routed_experts=1, top_k=1, soft_slots=slots)
        assert [parts.shown_name(arch, name) for name in names] == shown
