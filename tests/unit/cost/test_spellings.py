"""What a file may write: spellings that mean the same, nulls, and what is refused instead of being passed over."""

from dataclasses import MISSING, fields

import pytest

from minimoe.cost import architecture, descriptions, parts
from minimoe.cost.architecture import Architecture, Latent

DENSE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 3, "dense_ffn_hidden": 10}
MOE = {"vocab": 11, "d_model": 6, "n_layers": 2, "n_heads": 3, "n_routed_experts": 5, "top_k": 2, "expert_hidden": 7,
       "n_shared_experts": 1}
LATENT = {"q_lora_rank": 3, "kv_lora_rank": 5, "qk_nope_head_dim": 2, "qk_rope_head_dim": 1, "v_head_dim": 2}
WITH_DEFAULT = {f.name: f.default for f in fields(Architecture) if f.default is not MISSING}
FIELDS = [f.name for f in fields(Architecture)]


def read(base=MOE, **changes):
    return architecture.read({**base, **changes})


def refusal(base=MOE, **changes):
    with pytest.raises(ValueError) as error:
        read(base, **changes)
    return str(error.value)


@pytest.mark.parametrize("name", WITH_DEFAULT)
def test_null_is_the_same_as_not_said(name):
    base = DENSE if name in MOE else {**MOE, "dense_ffn_hidden": 10}
    without = {key: value for key, value in base.items() if key != name}
    assert read(without, **{name: None}) == read(without)


@pytest.mark.parametrize("name", [name for name, default in WITH_DEFAULT.items() if default is None])
def test_false_is_the_same_as_not_said_where_that_is_nothing(name):
    base = DENSE if name in MOE else {**MOE, "dense_ffn_hidden": 10}
    without = {key: value for key, value in base.items() if key != name}
    assert read(without, **{name: False}) == read(without)


@pytest.mark.parametrize("name", ["vocab", "d_model", "n_layers", "n_heads"])
def test_null_for_what_has_no_default_is_refused(name):
    assert refusal(**{name: None}) == f"arch = {name!r}: must be said"


@pytest.mark.parametrize("name, canonical, spellings", [
    ("ffn_type", "swiglu", ["SwiGLU", "SWIGLU", "swi-glu"]), ("ffn_type", "geglu", ["GEGLU", "GeGLU"]),
    ("ffn_type", "reglu", ["ReGLU"]), ("ffn_type", "gelu", ["GELU"]), ("ffn_type", "relu", ["ReLU", "RELU"]),
    ("ffn_type", "silu", ["SiLU"]), ("ffn_type", "relu2", ["ReLU2", "relu_2"]),
    ("pos", "rotary", ["rope", "RoPE", "Rotary"]), ("pos", "learned", ["Learned"]), ("pos", "relative", ["RELATIVE"]),
    ("pos", "none", ["None", "nope", "NoPE", "alibi", "ALiBi", "sinusoidal", "Sinusoidal"]),
    ("norm", "RMSNorm", ["rmsnorm", "RMS norm", "rms_norm"]),
    ("norm", "LayerNorm", ["layernorm", "layer_norm", "Layer-Norm", "layer norm"]),
    ("qk_norm", "per head", ["per-head", "per_head", "Per Head", "perhead"]),
    ("sinks", "1 per head", [True, "1-per-head", "1_per_head", "1 Per Head", "per head"]),
    ("shared_gate", "sigmoid", [True, "Sigmoid"]),
    ("biases", True, ["all", "All", " ALL ", ["all"]]), ("biases", None, ["none", "None", False, ["none"]]),
    ("biases", "qkv+out", ["qkv + out", " QKV +Out", ["qkv", "out"], ["QKV ", "out"]]),
    ("biases", "qkv", [["qkv"], "QKV"]),
    ("biases", "all but qkv+head", ["All but qkv + head", "all-but qkv+head", "all_but_qkv+head", " all  but qkv+head",
                                    ["all but qkv", "head"]]),
    ("encoder_decoder", "1+1", ["1 + 1", " 1+1 "]), ("router", "hash", ["hash"]),
    ("tied_embeddings", True, [True]), ("tied_embeddings", False, [False]),
    ("n_kv_heads", 3, [3.0]), ("expert_hidden", 1000, [1000.0, 1e3]), ("n_routed_experts", 5, [5.0]),
])
def test_spellings_that_mean_the_same(name, canonical, spellings):
    more = {"ctx": 9} if canonical == "learned" else {}
    strict = Architecture(**{**MOE, **more, name: canonical})
    for spelling in spellings:
        found = read(**more, **{name: spelling})
        assert found == strict and hash(found) == hash(strict)
        assert type(getattr(found, name)) is type(canonical)


def test_every_choice_can_be_written_in_capitals_and_every_other_word_is_a_choice():
    for field in fields(Architecture):
        choices = field.metadata.get("choices", ())
        assert all(descriptions.plain(field, c.upper()) == c for c in choices if isinstance(c, str))
        assert set(descriptions.SPELLINGS.get(field.name, {}).values()) <= set(choices)


def test_whole_floats_are_widths_of_latent_attention_too():
    found = read(mla={name: float(width) for name, width in LATENT.items()}).mla
    assert found == Latent(**LATENT) and all(type(getattr(found, name)) is int for name in LATENT)
    assert read(mla={**LATENT, "q_lora_rank": None}).mla == Latent(None, 5, 2, 1, 2)


@pytest.mark.parametrize("words, matrices", [
    (None, 1), ("", 1), ("softmax over top-k", 1), ("sigmoid + bias, normalised", 1), ("soft", 1),
    ("noisy top-k, softmax over top-k", 2), ("Noisy top-k", 2), ("NOISY", 2), ("noisy_topk", 2), ("top-k (noisy)", 2),
    ("not noisy", 1), ("softmax, non-noisy", 1), ("without noisy scores", 1), ("no noisy", 1), ("unnoisy", 1),
    ("not trained, noisy", 2), ("noisynet", 1),
    ("hash", 0), ("Hash layers", 0), ("hash-based", 0), ("random", 0), ("uniform", 0), ("Fixed", 0), ("fixed map", 0),
    ("not fixed", 1), ("prefixed", 1), ("randomised", 1), ("rehash", 1), ("fixed-point softmax", 1),
    ("sigmoid, uniform noise on its input", 1), ("noisy, of uniform noise", 2), ("not softmax, hash", 0),
])
def test_the_words_of_a_router_are_whole_words(words, matrices):
    # 6 * 5 numbers in a matrix
    arch = read(router=words)
    assert arch.router_matrices == matrices
    assert [part.total for part in parts.parts(arch) if part.name == "router"] == [30 * matrices] * 2


@pytest.mark.parametrize("stacks, first, n, kinds", [
    (None, 0, 2, "dmdmdm"), ("3+3", 0, 2, "dmd dmd"), ("3+3", 1, 1, "dmm dmm"), ("3+3", 1, 2, "ddm ddm"),
    ("2+4", 0, 2, "dm dmdm"), ("1+5", 2, 3, "d ddddm"), ("3+3", 0, 1, "mmm mmm"), (None, 1, 2, "ddmdmd")])
def test_layers_are_counted_from_the_first_of_each_stack(stacks, first, n, kinds):
    arch = read(n_layers=6, encoder_decoder=stacks, dense_first_layers=first, moe_every_n=n, dense_ffn_hidden=10)
    assert "".join(kind[0] for kind in arch.kinds) == kinds.replace(" ", "")


@pytest.mark.parametrize("changes, reason", [
    ({"biases": "norms"}, "biases = 'norms': must not name 'norms': norm is RMSNorm, and only LayerNorm has biases"),
    ({"biases": "norms", "norm": "RMSNorm"}, "biases = 'norms': must not name 'norms': norm is RMSNorm"),
    ({"biases": ["qkv", "head"], "tied_embeddings": True}, "biases = 'qkv+head': must not name 'head': tied"),
    ({"biases": "shared", "n_shared_experts": 0}, "biases = 'shared': must not name 'shared': n_shared_experts is 0"),
    ({"biases": "router", "router": "hash"}, "biases = 'router': must not name 'router': there is no router"),
    ({"biases": "qkv+dense"}, "biases = 'qkv+dense': must not name 'dense': no layer is dense"),
    ({"encoder_decoder": "0+2"}, "encoder_decoder = '0+2': must be two numbers of layers, like '12+12', or null"),
    ({"encoder_decoder": "2+0"}, "encoder_decoder = '2+0': must be two numbers of layers"),
    ({"ffn_type": "swish"}, "ffn_type = 'swish': must be 'swiglu' or 'geglu' or 'reglu' or 'gelu' or "),
    ({"qk_norm": "wide"}, "qk_norm = 'wide': must be true or 'per head', or null"),
    ({"tied_embeddings": 1}, "tied_embeddings = 1: must be true or false"),
    ({"pos": "Sinus"}, "pos = 'Sinus': must be 'rotary' or 'learned' or 'relative' or 'none', or null"),
    ({"biases": "QKV, out"}, "biases = 'QKV, out': must be true, or 'a+b' or 'all but a+b' of attention, qkv, "),
    ({"ctx": "long"}, "ctx = 'long': must be a whole number from 1 to 1,000,000,000,000, or null"),
    ({"top_k": 2.5}, "top_k = 2.5: must be a whole number from 0 to 1,000,000,000,000"),
    ({"mla": []}, "mla = []: must be a record of q_lora_rank, kv_lora_rank, "),
    ({"mla": {**LATENT, "q_lora_rank": 0}}, "mla.q_lora_rank = 0: must be a whole number from 1 to 1,000,000,000,000, "
                                            "or null"),
])
def test_what_counts_for_nothing_or_is_not_known_is_refused_with_the_reason(changes, reason):
    assert refusal(**changes).startswith(reason)


@pytest.mark.parametrize("name, value, reason", [
    ("biases", "qkv+experts", "must not name 'experts': n_routed_experts is 0"),
    ("biases", "router", "must not name 'router': there is no router"),
    ("biases", "shared", "must not name 'shared'"),
    ("expert_hidden", 7, "must be null without routed experts"), ("router", "softmax", "must be null without routed"),
    ("soft_slots", 3, "must be 0 without routed experts"), ("top_k", 1, "must be 0 without routed experts")])
def test_what_only_experts_have_is_refused_in_a_dense_model(name, value, reason):
    assert refusal(DENSE, **{name: value}).startswith(f"{name} = {value!r}: {reason}")
    read(DENSE, expert_hidden=None, router=None, soft_slots=0, top_k=0)


@pytest.mark.parametrize("base, changes", [
    (MOE, {"biases": True, "norm": "RMSNorm", "tied_embeddings": True}), (DENSE, {"biases": True, "norm": "RMSNorm"}),
    (DENSE, {"biases": "all but qkv"}), (DENSE, {"biases": "all but router"}), (MOE, {"biases": "all but dense+norms"}),
    (MOE, {"tied_embeddings": True, "biases": "all but head"}), (MOE, {"biases": "norms", "norm": "LayerNorm"}),
    (MOE, {"biases": "router", "router": "hash", "soft_slots": 4}), (MOE, {"biases": "experts+shared+router+head"}),
    (DENSE, {"biases": "dense+head"}), (MOE, {"dense_ffn_hidden": 99}), (DENSE, {"moe_every_n": 2}),
    (DENSE, {"dense_first_layers": 1})], ids=str)
def test_what_is_said_for_all_alike_means_whatever_is_there(base, changes):
    read(base, **changes)


ODD = [[], {}, "", (), [[]], [None], {"a": []}, 0.5, 1e300, float("nan"), object, b"qkv", -1, "qkv+", "+", "all but"]


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_any_value_is_refused_by_its_field_or_makes_a_model_that_can_be_counted(name, value):
    base = {**MOE, "dense_ffn_hidden": 10}
    try:
        arch = read(base, **{name: value})
    except ValueError as error:
        assert str(error).startswith((f"{name} = {value!r}: ", f"{name}."))
    else:
        assert name == "router" and isinstance(value, str)
        assert parts.parameters(arch).total > 0


@pytest.mark.parametrize("value", [[], {}, 0.5, 3.0, (), object, b"qkv", 0.0, -1], ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_an_architecture_is_strict_about_types(name, value):
    with pytest.raises(ValueError) as error:
        Architecture(**{**MOE, "dense_ffn_hidden": 10, name: value})
    assert str(error.value).startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("name, value", [
    ("biases", False), ("biases", 1), ("biases", 0), ("mla", False), ("sinks", True), ("shared_gate", True),
    ("ffn_type", "SwiGLU"), ("pos", "rope"), ("router", False), ("encoder_decoder", False), ("encoder_decoder", ""),
    ("qkv_bias", 1), ("qk_norm", 1), ("tied_embeddings", None), ("tied_embeddings", 0), ("top_k", None)])
def test_an_architecture_knows_one_spelling(name, value):
    with pytest.raises(ValueError) as error:
        Architecture(**{**MOE, name: value})
    assert str(error.value).startswith(f"{name} = {value!r}: ")


def test_a_key_that_is_no_text_is_refused():
    assert refusal(**{}, base={**MOE, 3: 4}).startswith("arch = '3': no such field")


def test_what_the_fields_say_tells_the_rules():
    says = {f.name: f.metadata["says"] for f in fields(Architecture)}
    assert all(word in says["router"] for word in ("noisy", "second", "none", *architecture.UNTRAINED,
                                                   *architecture.TRAINED))
    assert "DeepSeek-V3" in says["biases"] and "not counted" in says["biases"]
