"""Descriptions of models: the forms of a file, and what is refused, by file, model, key and value."""

import json
from dataclasses import fields

import pytest

from minimoe.cost import model_files, published
from minimoe.cost.architecture import Architecture

DENSE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 3, "dense_ffn_hidden": 10}
MOE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 3, "n_routed_experts": 5,
       "top_k": 2, "expert_hidden": 7, "n_shared_experts": 1, "shared_hidden": 4}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 5, "qk_nope_head_dim": 2, "qk_rope_head_dim": 1, "v_head_dim": 4}
ONE = {"name": "mine", "arch": DENSE}


def refusal(base, **changes):
    with pytest.raises(ValueError) as error:
        model_files.read_architecture({**base, **changes})
    return str(error.value)


@pytest.mark.parametrize("name", [f.name for f in fields(Architecture) if f.default is None])
def test_null_is_the_same_as_not_given(name):
    base = DENSE if name in MOE or name == "router" else {**MOE, "dense_ffn_hidden": 10}
    without = {key: value for key, value in base.items() if key != name}
    assert model_files.read_architecture({**without, name: None}) == model_files.read_architecture(without)


@pytest.mark.parametrize("changes, says", [
    ({"nlayers": 7}, "nlayers = 7: there is no such key, did you mean 'n_layers'?"),
    ({"vocab": None}, "vocab is required"),
    ({"vocab": 0}, "vocab = 0: must be a whole number from 1 to 1,000,000,000,000"),
    ({"n_layers": 10_001}, "n_layers = 10001: must be a whole number from 1 to 10,000"),
    ({"ctx": True}, "ctx = True: must be a "), ({"top_k": -1}, "top_k = -1: must be a whole number from 0"),
    ({"top_k": 6}, "top_k = 6: must be from 1 to n_routed_experts = 5"),
    ({"n_kv_heads": 3}, "n_kv_heads = 3: must divide n_heads = 4"),
    ({"head_dim": None}, "head_dim is required, since n_heads = 4 does not divide d_model = 6"),
    ({"expert_hidden": None}, "expert_hidden is required with n_routed_experts = 5"),
    ({"dense_first_layers": 1}, "dense_ffn_hidden is required: 1 of 2 layers are dense"),
    ({"dense_first_layers": 2}, "n_routed_experts = 5: dense_first_layers, moe_every_n and dense_layers leave"),
    ({"n_shared_experts": 0}, "shared_hidden = 4: must be null"), ({"pos": "learned"}, "ctx is required"),
    ({"encoder_decoder": "1+2"}, "n_layers = 2: must be the sum of encoder_decoder = '1+2'"),
    ({"encoder_decoder": "0+2"}, "encoder_decoder = '0+2': must be two"), ({"d_model": 6.0}, "d_model = 6.0: must be"),
    ({"qk_norm": 1}, "qk_norm = 1: must be true or false or 'per head', or null"), ({"sinks": 4}, "sinks = 4: must "),
    ({"norm": "layernorm"}, "norm = 'layernorm': must be 'RMSNorm' or 'LayerNorm' or 'without weights', or null, did "
                            "you mean 'LayerNorm'?"),
    ({"router": "nosiy top-k"}, "router = 'nosiy top-k': 'nosiy' is not one of softmax, sigmoid, soft, noisy, hash, "
                                "fixed, random, uniform, did you mean 'noisy'?"),
    ({"router": []}, "router = []: "), ({"pos": {}}, "pos = {}: must be "), ({"encoder_decoder": 0.5}, "encoder_de"),
    ({"router": 3}, "router = 3: "), ({"router": "noisy_topk"}, "router = 'noisy_topk': 'noisy_topk' is not one of"),
    ({"biases": "attention+rooter"}, "biases = 'attention+rooter': 'rooter' is not one of attention, qkv, out, router, "
                                     "experts, shared, dense, norms, head, did you mean 'router'?"),
    ({"biases": ["qkv"]}, "biases = ['qkv']: must be true"), ({"biases": "all but "}, "biases = 'all but ': '' is no"),
    ({"biases": "norms"}, "biases = 'norms': this model has no 'norms' that could have biases"),
    ({"biases": "router", "router": "hash"}, "biases = 'router': this"), ({"biases": "qkv+dense"}, "biases = 'qkv+d"),
    ({"attention": ["full", "windw"]}, "attention = ('full', 'windw'): must be a list of full, window, linear,"),
    ({"attention": "full"}, "attention = 'full': must be a list"), ({"attention": []}, "attention = (): must be"),
    ({"attention": ["full"] * 3}, "attention = ('full', 'full', 'full'): must be"), ({"window": 0}, "window = 0: "),
    ({"attention": ["full"], "window": 4}, "window = 4: must be null: attention = ('full',)"),
    ({"attention": ["window"]}, "window is required: attention = ('window',)"),
    ({"window": 4, "encoder_decoder": "1+1"}, "window = 4: must be null with two stacks"),
    ({"attention": ["linear"], "qk_norm": True}, "attention = ('linear',): linear layers with mla, qk_norm or"),
    ({"attention": ["linear"], "encoder_decoder": "1+1"}, "attention = ('linear',): must be null with two stacks"),
    ({"dense_layers": [0, 2]}, "dense_layers = (0, 2): must be a list of different layers from 0 to 1, or null"),
    ({"dense_layers": [0, 0]}, "dense_layers = (0, 0): must"), ({"dense_layers": [True]}, "dense_layers = (True,): "),
    ({"dense_layers": [0]}, "dense_ffn_hidden is required: 1"), ({"dense_layers": 0}, "dense_layers = 0: "),
    ({"v_head_dim": 0}, "v_head_dim = 0: must"), ({"v_head_dim": 3, "mla": LATENT}, "v_head_dim = 3: must be null"),
    ({"mla": [5]}, "mla = [5]: must be a rec"),
    ({"mla": {**LATENT, "v_dim": 3}}, "mla.v_dim = 3: there is no such key, did you mean 'v_head_dim'?"),
    ({"mla": {**LATENT, "q_lora_rank": 0}}, "mla.q_lora_rank = 0: must be a whole number from 1 to 1,000,000,000,000, "
                                            "or null"),
    ({"mla": LATENT, "head_dim": 9}, "head_dim = 9: must be null with mla"),
], ids=str)
def test_a_description_that_cannot_be_is_refused_by_key_and_value(changes, says):
    assert refusal(MOE, **changes).startswith(says)


@pytest.mark.parametrize("name, value", [("expert_hidden", 7), ("router", "softmax"), ("soft_slots", 3), ("top_k", 1),
                                         ("n_shared_experts", 1), ("n_routed_experts", 3), ("biases", "experts"),
                                         ("dense_layers", (1,))])
def test_what_only_experts_have_is_refused_in_a_dense_model(name, value):
    more = {"dense_first_layers": 2} if name == "n_routed_experts" else {}
    assert refusal(DENSE, **more, **{name: value}).startswith(f"{name} = {value!r}: ")
    model_files.read_architecture({**DENSE, "expert_hidden": None, "router": None, "soft_slots": 0, "top_k": 0})


@pytest.mark.parametrize("base, changes", [
    (DENSE, {"biases": True, "norm": "RMSNorm"}), (DENSE, {"biases": "all but router"}), (DENSE, {"moe_every_n": 2}),
    (MOE, {"biases": "router", "router": "hash", "soft_slots": 4}), (MOE, {"dense_ffn_hidden": 99}),
    (MOE, {"mla": LATENT}), (MOE, {"mla": {**LATENT, "v_head_dim": 5}}),  # head_dim is the query's 3 here
    (MOE, {"head_dim": 4, "mla": LATENT}), (MOE, {"n_layers": 10_000}), (MOE, {"top_k": 5}), (MOE, {"qkv_bias": False}),
], ids=str)
def test_what_is_there_or_named_for_all_alike_is_read(base, changes):
    arch = model_files.read_architecture({**base, **changes})
    assert hash(arch) == hash(model_files.read_architecture({**base, **changes}))


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("content", [
    {"models": [ONE]}, [ONE], "\ufeff" + json.dumps(ONE), {"models": [{**ONE, "published": 3, "notes": {}}], "by": 1},
], ids=["models", "list", "one, after a byte order mark", "with other keys"])
def test_a_file_of_models_is_read_in_each_form(content, tmp_path):
    path = write(tmp_path / "mine.json", content)
    model = model_files.Model("mine", "mine", model_files.read_architecture(DENSE), {}, str(path))
    assert model_files.read_file(path) == model_files.read_file(str(path)) == [model]
    # tables 2 * 66; a layer: four matrices 6 * 6, three 6 * 10, two norms; a last norm: and all of it is active
    total = 132 + 2 * (144 + 180 + 12) + 6
    assert tuple(published.counts(model).values()) == ("mine", total, total, total - 66, total - 132)
    three = write(tmp_path / "three.json", [{**ONE, "name": name} for name in ("b", "c é", "a")])
    assert [model.name for model in model_files.read_file(three)] == ["b", "c é", "a"]


def with_arch(text):
    return f'[{json.dumps(ONE)}, {{"name": "odd", "arch": {text}}}]'


REFUSED = [
    ("{\n  'name'}", "is not JSON in UTF-8: .* line 2 column 3"),
    ({"models": []}, ".*hold at least one"), ("3", "must be {\"models\""), ({"models": {"a": ONE}}, "must be"),
    ([ONE, [ONE]], "model 2: must be a record with"), ({"name": "bare"}, "model 1, 'bare': must be a record with"),
    ({**ONE, "name": 7}, "model 1, 7: name = 7: must be a single line"), ({**ONE, "name": " "}, "model 1, ' ': na"),
    ({**ONE, "name": "a\nb"}, r"model 1, 'a\\nb': name = "),
    ([ONE, {**ONE, "name": "other"}, ONE], "model 3, 'mine': name = 'mine': an earlier model already has this"),
    (with_arch("null"), "model 2, 'odd': arch = None: must be a record of keys"),
    (with_arch(json.dumps({**DENSE, "vocab": 0})), "model 2, 'odd': vocab = 0: "),
    (with_arch('{"vocab": NaN, "d_model": 8}'), "model 2, 'odd': n_layers is required"),
    (with_arch('{"vocab": 1, "d_model": 8, "vocab": 2}'), "vocab = 2: is given twice in one record"),
    (with_arch(json.dumps(DENSE).replace("11", "1" * 9000)), ""),
    ("[" * 100_000, "is nested too deeply"), (with_arch("[" * 900 + "]" * 900), "")]


@pytest.mark.parametrize("content, says", REFUSED, ids=[says[:50] for _, says in REFUSED])
def test_a_file_that_cannot_be_read_is_refused_by_file_model_and_key(content, says, tmp_path):
    path = write(tmp_path / "odd.json", content)
    with pytest.raises(ValueError, match=f"^{path}: {says}"):
        model_files.read_file(path)


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="gone.json: No such file"):
        model_files.read_file(tmp_path / "gone.json")
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(ValueError, match="latin.json: is not JSON in UTF-8: .*0xe9 in position 10"):
        model_files.read_file(tmp_path / "latin.json")
