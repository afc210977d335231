"""Descriptions of models: what each field counts for, which are refused, and files of them."""

import json
from dataclasses import fields

import pytest

from minimoe.cost import architecture, parts, published
from minimoe.cost.architecture import Architecture

# attention 6 * (4 + 2 * 2) * 3 + 4 * 3 * 6 = 216; norms 12; router 30; an expert 3 * 6 * 7 = 126; the shared one 72;
# so a layer has 216 + 12 + 30 + 5 * 126 + 72 = 960, and active 582.  Tables of 66, and a last norm of 6.
BASE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 3, "n_routed_experts": 5,
        "top_k": 2, "expert_hidden": 7, "n_shared_experts": 1, "shared_hidden": 4}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 5, "qk_nope_head_dim": 2, "qk_rope_head_dim": 1, "v_head_dim": 2}
DENSE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 3, "dense_ffn_hidden": 10}

EFFECTS = [
    # changes; more parameters in all, and active
    ({"vocab": 12}, 2 * 6, 12),
    # tables 2 * 11; a layer: attention 7 * 24 + 84 = 252, norms 14, router 35, five of 147, shared 84: 1120
    ({"d_model": 7}, 22 + 2 * 160 + 1, 22 + 2 * (1120 - 3 * 147 - 582) + 1),
    ({"n_layers": 3}, 960, 582),
    ({"n_heads": 2}, -2 * (6 * 2 * 3 + 2 * 3 * 6), -144),
    ({"n_kv_heads": 4}, 2 * 6 * 4 * 3, 144),
    ({"n_kv_heads": None}, 144, 144),
    ({"head_dim": 2}, -2 * (6 * 8 + 4 * 6), -144),
    # queries 6 * 4 * 3 = 72; keys and values 6 * (5 + 1) + 5 * 4 * (2 + 2) = 116; back 4 * 2 * 6 = 48; a norm of 5
    ({"mla": LATENT}, 2 * (72 + 116 + 48 + 5 - 216), 50),
    # queries by way of 3: 6 * 3 + 3 * 12 = 54, and a norm of 3
    ({"mla": {**LATENT, "q_lora_rank": 3}}, 2 * (54 + 116 + 48 + 8 - 216), 20),
    # keys and values 6 * (6 + 1) + 6 * 16 = 138 and a norm of 6
    ({"mla": {**LATENT, "kv_lora_rank": 6}}, 2 * (72 + 138 + 48 + 6 - 216), 96),
    # queries 6 * 4 * 4 = 96; keys and values 36 + 5 * 4 * 5 = 136
    ({"mla": {**LATENT, "qk_nope_head_dim": 3}}, 2 * (96 + 136 + 48 + 5 - 216), 138),
    # queries 96; keys and values 6 * 7 + 80 = 122
    ({"mla": {**LATENT, "qk_rope_head_dim": 2}}, 2 * (96 + 122 + 48 + 5 - 216), 110),
    # keys and values 36 + 5 * 4 * 5 = 136; back 72
    ({"mla": {**LATENT, "v_head_dim": 3}}, 2 * (72 + 136 + 72 + 5 - 216), 138),
    # biases of queries 12, of the narrow vectors 5 + 1
    ({"mla": LATENT, "qkv_bias": True}, 50 + 2 * 18, 86),
    ({"mla": {**LATENT, "q_lora_rank": 3}, "qkv_bias": True}, 20 + 2 * 9, 38),
    ({"qk_norm": True}, 2 * (4 + 2) * 3, 36),
    ({"qk_norm": "per head"}, 2 * 2 * 3, 12),
    ({"qkv_bias": True}, 2 * 8 * 3, 48),
    ({"sinks": "1 per head"}, 2 * 4, 8),
    ({"n_routed_experts": 6}, 2 * (6 + 126), 12),
    ({"top_k": 3}, 0, 2 * 126),
    ({"expert_hidden": 8}, 2 * 5 * 18, 2 * 2 * 18),
    ({"router": "noisy top-k"}, 2 * 30, 60),
    ({"router": "fixed"}, -2 * 30, -60),
    ({"router": "hash", "biases": "all but attention+experts+shared+norms+head"}, -2 * 30, -60),
    ({"router": "softmax"}, 0, 0),
    ({"soft_slots": 3}, 2 * (3 * 6 + 1 - 30), -22),  # and its scale
    ({"n_shared_experts": 2}, 2 * 72, 144),
    ({"n_shared_experts": 0, "shared_hidden": None}, -144, -144),
    ({"shared_hidden": 5}, 2 * 18, 36),
    ({"shared_hidden": None}, 2 * 3 * 18, 108),
    ({"shared_gate": "sigmoid"}, 2 * 6, 12),
    ({"dense_first_layers": 1, "dense_ffn_hidden": 10}, 180 - 732, 180 - 354),
    ({"dense_first_layers": 1, "dense_ffn_hidden": 11}, 198 - 732, 198 - 354),
    ({"moe_every_n": 2, "dense_ffn_hidden": 10}, 180 - 732, 180 - 354),
    ({"dense_ffn_hidden": 10}, 0, 0),
    ({"ffn_type": "gelu"}, -2 * 6 * 7 * 5 - 2 * 6 * 4, -2 * 6 * 7 * 2 - 48),
    ({"ffn_type": "relu"}, -468, -216),
    ({"ffn_type": "geglu"}, 0, 0),
    ({"ffn_type": "reglu"}, 0, 0),
    ({"ffn_type": "silu"}, -468, -216),
    ({"ffn_type": "relu2"}, -468, -216),
    ({"norm": "LayerNorm"}, 0, 0),
    ({"norm": "without weights"}, -5 * 6, -30),
    ({"n_norms": 1}, -2 * 6, -12),
    ({"n_norms": 4}, 2 * 2 * 6, 24),
    ({"n_norms": 4, "norm": "LayerNorm", "biases": "norms"}, 2 * 2 * 6 + 9 * 6, 78),
    ({"n_norms": 4, "norm": "without weights"}, -5 * 6, -30),
    # of the encoder's layer four, of the decoder's five, two last ones; the rest as for two stacks
    ({"encoder_decoder": "1+1", "n_norms": 4}, 216 + 6 + 6 + 2 * 128 + 2 * 2 * 6, 508),
    ({"norm": "LayerNorm", "biases": "norms"}, 5 * 6, 30),
    # a layer: attention 24 + 6, router 5, an expert 2 * 7 + 6 = 20, shared 2 * 4 + 6 = 14, norms 12
    ({"biases": True}, 2 * (30 + 5 + 100 + 14 + 12) + 6 + 11, 2 * (30 + 5 + 40 + 14 + 12) + 6 + 11),
    ({"biases": True, "norm": "RMSNorm"}, 2 * (30 + 5 + 100 + 14) + 11, 2 * (30 + 5 + 40 + 14) + 11),
    ({"biases": False}, 0, 0),
    ({"biases": "attention"}, 2 * 30, 60),
    ({"biases": "qkv"}, 2 * 24, 48),
    ({"biases": "out"}, 2 * 6, 12),
    ({"biases": "router"}, 2 * 5, 10),
    ({"biases": "router", "router": "noisy"}, 60 + 2 * 10, 80),
    ({"biases": "experts"}, 2 * 100, 80),
    ({"biases": "shared"}, 2 * 14, 28),
    ({"biases": "shared", "n_shared_experts": 2}, 2 * (72 + 2 * 14), 200),
    ({"biases": "head"}, 11, 11),
    ({"biases": "router+head"}, 2 * 5 + 11, 21),
    ({"biases": "all but norms+head"}, 2 * 149, 2 * 89),
    ({"biases": "dense", "dense_first_layers": 1, "dense_ffn_hidden": 10}, 206 - 732, 206 - 354),
    ({"tied_embeddings": True}, -66, -66),
    ({"pos": "learned", "ctx": 9}, 9 * 6, 54),
    ({"pos": "learned", "ctx": 10}, 10 * 6, 60),
    ({"ctx": 9}, 0, 0),
    ({"pos": "relative"}, 32 * 4, 128),
    ({"pos": "none"}, 0, 0),
    # a second attention and its norm in the decoder, a second last norm, and relative positions in each stack
    ({"encoder_decoder": "1+1"}, 216 + 6 + 6 + 2 * 128, 484),
    ({"encoder_decoder": "1+1", "pos": "rotary", "qk_norm": "per head"}, 216 + 6 + 6 + 3 * 6, 246),
]


def described(**changes):
    """An Architecture of BASE with changes; latent attention says its own widths."""
    base = {**BASE, "head_dim": None} if "mla" in changes else BASE
    return architecture.read({**base, **changes})


def test_the_base_by_hand():
    assert parts.parameters(described()) == (2 * 960 + 138, 2 * 582 + 138, 2 * 582 + 72, 2 * 582 + 6)


@pytest.mark.parametrize("changes, total, active", EFFECTS, ids=[str(changes) for changes, _, _ in EFFECTS])
def test_a_field_counts_for_what_it_says(changes, total, active):
    counted = parts.parameters(described(**changes))
    assert (counted.total - 2058, counted.active - 1302) == (total, active)


def test_every_field_has_an_effect_here():
    moved = {name for changes, *more in EFFECTS if any(more) for name in changes}
    assert moved == {f.name for f in fields(Architecture)}


def test_the_order_of_dense_layers_and_layers_with_experts():
    every_third = described(n_layers=8, dense_first_layers=1, moe_every_n=3, dense_ffn_hidden=10)
    assert [i for i, kind in enumerate(every_third.kinds) if kind == "moe"] == [3, 6]


@pytest.mark.parametrize("remark", architecture.REMARKS)
def test_a_remark_counts_for_nothing(remark):
    assert described(**{remark: "anything"}) == described()


COUNTS = [f.name for f in fields(Architecture) if "least" in f.metadata]
ZERO_IS_RIGHT = {"n_routed_experts", "top_k", "soft_slots", "n_shared_experts", "dense_first_layers"}


@pytest.mark.parametrize("value", [-1, -1.0, 2.5, 1e300, True, "3", [3], {}, float("nan"), float("inf"), 10**13])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_none_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError) as error:
        described(**{name: value})
    assert str(error.value).startswith(f"{name} = {value!r}: must be a whole number")


@pytest.mark.parametrize("name", [name for name in COUNTS if name not in ZERO_IS_RIGHT])
def test_a_width_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name} = 0: must be a whole number from 1 to "):
        described(**{name: 0})


@pytest.mark.parametrize("changes, field, value", [
    ({"qk_norm": "wide"}, "qk_norm", "wide"), ({"qk_norm": 1}, "qk_norm", 1), ({"qkv_bias": "yes"}, "qkv_bias", "yes"),
    ({"sinks": 4}, "sinks", 4), ({"router": 3}, "router", 3), ({"shared_gate": "tanh"}, "shared_gate", "tanh"),
    ({"ffn_type": "swish"}, "ffn_type", "swish"), ({"ffn_type": False}, "ffn_type", False),
    ({"norm": "BatchNorm"}, "norm", "BatchNorm"), ({"n_norms": 0}, "n_norms", 0),
    ({"norm": "without weights", "biases": "norms"}, "biases", "norms"),
    ({"biases": "attention+rooter"}, "biases", "attention+rooter"),
    ({"biases": "all but "}, "biases", "all but "), ({"biases": 1}, "biases", 1),
    ({"biases": ["qkv", "rooter"]}, "biases", ["qkv", "rooter"]), ({"biases": ["qkv", 3]}, "biases", ["qkv", 3]),
    ({"tied_embeddings": "no"}, "tied_embeddings", "no"), ({"pos": "sinus"}, "pos", "sinus"),
    ({"pos": "learned"}, "ctx", None), ({"encoder_decoder": "2"}, "encoder_decoder", "2"),
    ({"encoder_decoder": "1+a"}, "encoder_decoder", "1+a"), ({"encoder_decoder": [1, 1]}, "encoder_decoder", [1, 1]),
    ({"encoder_decoder": "1+2"}, "n_layers", 2), ({"n_kv_heads": 3}, "n_kv_heads", 3),
    ({"n_kv_heads": 8}, "n_kv_heads", 8),
    ({"head_dim": None}, "head_dim", None), ({"top_k": 6}, "top_k", 6), ({"top_k": 0}, "top_k", 0),
    ({"expert_hidden": None}, "expert_hidden", None), ({"dense_first_layers": 1}, "dense_ffn_hidden", None),
    ({"moe_every_n": 2}, "dense_ffn_hidden", None), ({"dense_first_layers": 2}, "n_routed_experts", 5),
    ({"moe_every_n": 3}, "n_routed_experts", 5), ({"n_routed_experts": 0, "dense_ffn_hidden": 9}, "top_k", 2),
    ({"n_routed_experts": 0, "dense_ffn_hidden": 9, "top_k": 0}, "n_shared_experts", 1),
    ({"n_shared_experts": 0}, "shared_hidden", 4),
    ({"n_shared_experts": 0, "shared_hidden": None, "shared_gate": "sigmoid"}, "shared_gate", "sigmoid"),
    ({"mla": {}}, "mla.q_lora_rank", None), ({"mla": {**LATENT, "rank": 3}}, "mla.rank", 3),
    ({"mla": {**LATENT, "kv_lora_rank": 0}}, "mla.kv_lora_rank", 0),
    ({"mla": {**LATENT, "v_head_dim": None}}, "mla.v_head_dim", None), ({"mla": [5]}, "mla", [5]),
    ({"mla": LATENT, "head_dim": 9}, "head_dim", 9), ({"mla": LATENT, "qk_norm": True}, "qk_norm", True),
    ({"vocab": None}, "arch", "vocab"), ({"nlayers": 2, "heads": 4}, "arch", "nlayers, heads"),
], ids=str)
def test_a_description_that_cannot_be_is_refused_by_field_and_value(changes, field, value):
    with pytest.raises(ValueError) as error:
        described(**changes)
    assert str(error.value).startswith(f"{field} = {value!r}: ")


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


ONE = {"name": "mine", "arch": DENSE}


@pytest.mark.parametrize("content", [
    {"models": [ONE]}, [ONE], ONE, {"conventions": "of ours", "models": [ONE]},
    {"models": [{**ONE, "published": 3, "counted": {"total": -1}, "key": None, "source": [], "notes": "x", "mtp": {}}]},
], ids=["models", "list", "one", "with remarks", "with other keys"])
def test_a_file_of_models_is_read_in_each_form(content, tmp_path):
    path = write(tmp_path / "mine.json", content)
    model = published.Model("mine", "mine", architecture.read(DENSE), {}, str(path))
    assert published.read_file(path) == published.read_file(str(path)) == [model]
    # tables 2 * 66; a layer: four matrices 6 * 6, three 6 * 10, two norms; a last norm: and all of it is active
    total = 132 + 2 * (144 + 180 + 12) + 6
    assert published.counts(model) == {
        "name": "mine", "total": total, "active_incl_all_embeddings": total, "active_excl_input_embedding": total - 66,
        "active_non_embedding": total - 132}


def test_models_stand_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "three.json", [{**ONE, "name": name} for name in ("b", "c é", "a")])
    assert [model.name for model in published.read_file(path)] == ["b", "c é", "a"]


def test_as_many_layers_as_can_be_listed_are_read(tmp_path):
    path = write(tmp_path / "deep.json", {**ONE, "arch": {**DENSE, "n_layers": 10_000}})
    assert published.read_file(path)[0].arch.n_layers == 10_000


def test_a_mark_of_byte_order_is_no_matter(tmp_path):
    path = tmp_path / "marked.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ONE).encode())
    assert len(published.read_file(path)) == 1


def with_arch(text):
    return f'[{json.dumps(ONE)}, {{"name": "odd", "arch": {text}}}]'


def changed(**changes):
    return with_arch(json.dumps({**DENSE, **changes}))


REFUSED = [
    ("", "is no JSON in UTF-8: .* line 1 column 1"), ("{\n  'name'}", "is no JSON in UTF-8: .* line 2 column 3"),
    ([], ".*hold at least one"), ({"models": []}, ".*hold at least one"), ("3", "must be {\"models\""),
    ("null", "must be"), ("NaN", "must be"), ({"models": {"a": ONE}}, "must be"), ({"models": None}, "must be"),
    ([3], "model 1: must be a record"), ([ONE, [ONE]], "model 2: must be a record"),
    ({}, "model 1: name: must be said"), ({"arch": DENSE}, "model 1: name: must be said"),
    ({**ONE, "name": 7}, "model 1: name = 7: must be text"), ({**ONE, "name": None}, "model 1: name = None"),
    ({**ONE, "name": " "}, "model 1: name = ' '"), ({**ONE, "name": "a\nb"}, r"model 1: name = 'a\\nb'"),
    ({**ONE, "name": "\ud800"}, r"model 1: name = '\\ud800'"), ({**ONE, "name": float("nan")}, "model 1: name = nan"),
    ([ONE, {**ONE, "name": "other"}, ONE], "model 3: name = 'mine': model 1 has this name too"),
    ([{**ONE, "name": "other"}, ONE, ONE], "model 3: name = 'mine': model 2 has this name too"),
    ({"name": "bare"}, "model 1, 'bare': arch: must be said"),
    (with_arch("null"), "model 2, 'odd': arch = None: must be a record"),
    (with_arch("[]"), r"model 2, 'odd': arch = \[\]: must be a record"),
    (changed(nlayers=2), "model 2, 'odd': arch = 'nlayers': no such field, did you mean 'n_layers'\\?"),
    (with_arch('{"vocab": 5}'), "model 2, 'odd': arch = 'd_model, n_layers, n_heads': must be said"),
    (changed(vocab=0), "model 2, 'odd': vocab = 0: "),
    (changed(d_model=float("nan")), "model 2, 'odd': d_model = nan: "),
    (changed(ctx=-float("inf")), "model 2, 'odd': ctx = -inf: "),
    (changed(vocab=10**40), r"model 2, 'odd': vocab = 1e\+40: "),
    (with_arch(json.dumps(DENSE).replace("11", "1" * 9000)), "model 2, 'odd': vocab = inf: "),
    (changed(n_layers=10**12), "model 2, 'odd': n_layers = 1000000000000: must be a whole number from 1 to 10,000"),
    (changed(n_layers=10_001), "model 2, 'odd': n_layers = 10001: must be a whole number from 1 to 10,000"),
    (changed(nlayers=[7, 8]), "model 2, 'odd': arch = 'nlayers': .*it says .7, 8.; there are vocab, "),
    (with_arch('{"vocab": 1, "d_model": 8, "vocab": 2}'), "model 2, 'odd': vocab = 1 and 2: must be said once"),
    (with_arch('{"mla": {"v_head_dim": 1, "v_head_dim": 1}}'), "model 2, 'odd': mla: v_head_dim = 1 and 1: must be"),
    ('{"name": "a", "name": "b", "arch": {}}', "model 1: name = 'a' and 'b': must be said once"),
    (changed(mla={"a": {"b": []}}), "model 2, 'odd': mla.a = {'b'"), ("[" * 100_000, "is nested too deep"),
]


@pytest.mark.parametrize("content, says", REFUSED, ids=[says for _, says in REFUSED])
def test_a_file_that_cannot_be_read_is_refused_by_file_model_and_field(content, says, tmp_path):
    path = write(tmp_path / "odd.json", content)
    with pytest.raises(ValueError, match=f"^{path}: {says}"):
        published.read_file(path)


def test_every_depth_of_nesting_is_refused_alike(tmp_path):
    for depth in range(800, 1000, 3):
        with pytest.raises(ValueError, match="odd.json: "):
            published.read_file(write(tmp_path / "odd.json", with_arch("[" * depth + "]" * depth)))


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="gone.json: No such file"):
        published.read_file(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=f"^{tmp_path}: Is a directory"):
        published.read_file(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(ValueError, match="latin.json: is no JSON in UTF-8: .*0xe9 in position 10"):
        published.read_file(tmp_path / "latin.json")
    with pytest.raises(ValueError, match="null byte"):
        published.read_file("a\0b")
