"""Hugging Face's config.json: published ones, small ones by hand, and what is refused by key and value."""

import json

import pytest

from minimoe.cost import huggingface, memory, model_files, parts, published

MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 11, "hidden_size": 6,
           "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3, "rope_theta": 1e6,
           "intermediate_size": 7, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None,
           "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16", "max_position_embeddings": 64}
QWEN = {**MIXTRAL, "model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"], "num_hidden_layers": 4,
        "moe_intermediate_size": 8, "shared_expert_intermediate_size": 9, "decoder_sparse_step": 1,
        "use_sliding_window": False, "max_window_layers": 21, "sliding_window": 32}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "pad_token_id": 199999, "quantization_config": {"quant_method": "mxfp4"}, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0}, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
    "swiglu_limit": 7.0, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 201088}
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "auto_map": {}, "bos_token_id": 0,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"fmt": "e4m3"}, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280}
DEEPSEEK = {
    "model_type": "deepseek", "architectures": ["DeepseekForCausalLM"], "vocab_size": 102400, "hidden_size": 2048,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "aux_loss_alpha": 0.001, "seq_aux": True, "attention_bias": False}
HUNYUAN = {**MIXTRAL, "model_type": "hunyuan_v1_moe", "architectures": ["HunYuanMoEV1ForCausalLM"], "moe_topk": [2, 2],
           "num_experts": 5, "moe_intermediate_size": [7, 7], "num_shared_expert": [1, 1], "use_mla": False,
           "use_cla": False, "cla_share_factor": 2, "kv_lora_rank": 512, "use_qk_norm": True, "use_mixed_mlp_moe": True,
           "attention_head_dim": 3, "moe_layer_num_skipped": 0}


def without(record, *words):
    """The record without the keys that contain one of the words."""
    return {key: value for key, value in record.items() if not any(word in key for word in words)}


HUNYUAN = without(HUNYUAN, "num_local_experts", "num_experts_per_tok")


def arch_of(record, **changes):
    return huggingface.read({**record, **changes}, "config.json")[1]


def counts_of(arch):
    return tuple(parts.parameters(arch))


@pytest.mark.parametrize("record, key", [(GPT_OSS, "gpt-oss-20b"), (DEEPSEEK_V3, "deepseek-v3"),
                                         (DEEPSEEK, "deepseekmoe-16b")], ids=lambda case: str(case)[:15])
def test_files_as_published_have_the_counts_of_the_table(record, key):
    arch, known = arch_of(record), published.find(key).arch
    assert counts_of(arch) == counts_of(known) and arch.attentions == known.attentions
    assert memory.kv_numbers(arch, 5000) == memory.kv_numbers(known, 5000)


def test_small_models_by_hand():
    # a layer: attention 6 * 8 * 3 + 4 * 3 * 6 = 216, norms 12, router 30, five experts of 126; tables 66, a norm of 6
    assert counts_of(arch_of(MIXTRAL)) == (2 * 888 + 138, 2 * 510 + 138, 2 * 510 + 72, 2 * 510 + 6)
    # norms of queries and keys of 3 each, and a dense block of 126 beside the experts
    assert counts_of(arch_of(HUNYUAN))[:2] == (2 * (888 + 6 + 126) + 138, 2 * (510 + 6 + 126) + 138)
    # qwen2_moe: biases 24, shared 3 * 6 * 9 and its gate 6, five experts of 144; dense 216 + 24 + 12 + 126
    moe, dense = 216 + 24 + 12 + 30 + 162 + 6, 216 + 24 + 12 + 126
    for changes, kinds in (({}, "mmmm"), ({"decoder_sparse_step": 2}, "dmdm"), ({"mlp_only_layers": [0, 3]}, "dmmd"),
                           ({"decoder_sparse_step": 3, "mlp_only_layers": [1]}, "ddmd"), ({"num_experts": 0}, "dddd")):
        arch = arch_of({"num_experts": 5} | without(QWEN, "num_local_experts") | changes)
        n = kinds.count("m")
        assert "".join(kind[0] for kind in arch.kinds) == kinds
        assert counts_of(arch)[:2] == tuple(n * (moe + k * 144) + (4 - n) * dense + 138 for k in (5, 2))


@pytest.mark.parametrize("changes, windows", [
    ({}, []), ({"use_sliding_window": True}, [0, 2]), ({"use_sliding_window": True, "max_window_layers": 1}, [0]),
    ({"use_sliding_window": True, "model_type": "qwen2", "max_window_layers": 1}, [1, 2, 3]),
    ({"layer_types": ["full_attention", "sliding_attention"] * 2, "use_sliding_window": True}, [1, 3]),
    ({"model_type": "gemma2"}, [0, 2]), ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, [0, 2]),
    ({"model_type": "gemma3_text"}, [0, 1, 2, 3]), ({"model_type": "olmo3"}, [0, 1, 2]),
    ({"model_type": "mistral"}, [0, 1, 2, 3]), ({"model_type": "mistral", "sliding_window": None}, [])], ids=str)
def test_windows_are_where_the_family_has_them(changes, windows):
    dense = {**without(MIXTRAL, "experts"), "num_hidden_layers": 4, "sliding_window": 32}
    arch = arch_of(dense if "model_type" in changes else QWEN, **changes)
    assert [i for i, kind in enumerate(arch.attentions) if kind == "window"] == windows
    assert arch.window == (32 if windows else None)


@pytest.mark.parametrize("record, changes, says", [
    (MIXTRAL, {"model_type": "mixtrall"}, "model_type = 'mixtrall': must be one of llama, .*did you mean 'mixtral'"),
    (MIXTRAL, {"model_type": None}, "model_type is required: one of llama, "),
    (MIXTRAL, {"model_type": "gpt2"}, "model_type = 'gpt2': must .*; `cost --model gpt-2` counts a published one"),
    (MIXTRAL, {"architectures": ["MixtralForSequenceClassification"]}, r"architectures = .*: must be a language model"),
    (MIXTRAL, {"text_config": {"vocab_size": 3}}, "text_config = '{...}': this model has several parts"),
    (MIXTRAL, {"kv_lora_rank": 5}, "kv_lora_rank = 5: changes the count, but is not"),
    (QWEN, {"use_sliding_window": True, "layer_types": [["chunked"]] * 4}, "layer_types = .*: must be 4 of full_"),
    (QWEN, {"mlp_only_layers": [[1]]}, r"mlp_only_layers = \[\[1\]\]: must be a list of layers"),
    (QWEN, {"hidden_act": ["silu"]}, r"hidden_act = \['silu'\]: must be one of silu"),
    (DEEPSEEK_V3, {"v_head_dim": 0}, "v_head_dim = 0: must be a whole number from 1"),
    (MIXTRAL, {"attention_bias": True}, "attention_bias = True: changes the count"),
    (MIXTRAL, {"num_experts_per_token": 3}, "num_experts_per_token = 3: is unknown, did you mean 'num_exp"),
    (MIXTRAL, {"num_experts": 4}, "num_experts = 4: does not agree with num_local_experts = 5"),
    (MIXTRAL, {"num_hidden_layers": 0}, "num_hidden_layers = 0: must be a whole number from 1"),
    (MIXTRAL, {"hidden_size": "6"}, "hidden_size = '6': must be a whole number"),
    (MIXTRAL, {"num_key_value_heads": 3}, "num_key_value_heads = 3: must divide num_attention_heads = 4"),
    (MIXTRAL, {"num_experts_per_tok": 6}, "num_experts_per_tok = 6: must be from 1 to num_local_experts = 5"),
    (MIXTRAL, {"hidden_act": "relu2"}, "hidden_act = 'relu2': must be one of silu"),
    (MIXTRAL, {"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be true or false"),
    (QWEN, {"qkv_bias": "yes"}, "qkv_bias = 'yes': must be true or false"),
    (QWEN, {"mlp_only_layers": 3}, "mlp_only_layers = 3: must be a list"),
    (QWEN, {"decoder_sparse_step": 0}, "decoder_sparse_step = 0: must be a whole number"),
    (QWEN, {"use_sliding_window": True, "layer_types": ["full_attention"] * 3}, "layer_types = .*: must be 4 of"),
    (QWEN, {"use_sliding_window": True, "sliding_window": -3}, "sliding_window = -3: must be a whole number"),
    (HUNYUAN, {"moe_topk": [1, 2]}, r"moe_topk = \[1, 2\]: must be a whole number"),
    (HUNYUAN, {"use_cla": True}, "use_cla = True: changes the count"),
    (HUNYUAN, {"use_qk_norm": False}, "use_qk_norm = False: is not supported: must be True"),
    (HUNYUAN, {"moe_intermediate_size": [8, 8]}, "moe_intermediate_size = 8: changes the count"),
    (DEEPSEEK_V3, {"moe_layer_freq": [0, 1]}, r"moe_layer_freq = \[0, 1\]: must be a whole number"),
    (DEEPSEEK_V3, {"q_lora_rank": None, "attention_bias": True}, "attention_bias = True: is not supported with"),
], ids=str)
def test_what_is_wrong_or_not_understood_is_refused_by_key_and_value(record, changes, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        arch_of(record, **changes)


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "num_local_experts", "num_key_value_heads"])
def test_a_missing_key_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"^{key.replace('_local', '')} is required"):
        arch_of({name: value for name, value in MIXTRAL.items() if name != key})


def test_what_counts_for_nothing_and_what_is_off_is_read_over():
    more = {"attention_bias": False, "rope_parameters": {"rope_type": "yarn"}, "n_shared_experts": None, "_commit": "a",
            "attention_dropout": 0.1, "num_mtp_layers": 1, "mlp_only_layers": []}
    assert arch_of(MIXTRAL, **more) == arch_of(MIXTRAL)


def test_the_file_names_the_model_and_is_named_in_errors(tmp_path):
    path = tmp_path / "config.json"
    for name, expected in (("mistralai/Mixtral", "mistralai/Mixtral"), ("", str(path)), ("a\nb", str(path))):
        path.write_text(json.dumps({**MIXTRAL, "_name_or_path": name}), "utf-8")
        [model] = model_files.read_file(path)
        assert model == model_files.Model(expected, expected, arch_of(MIXTRAL), {}, str(path))
    path.write_text(json.dumps({**MIXTRAL, "model_type": "gpt9"}), "utf-8")
    with pytest.raises(ValueError, match=f"^{path}: model_type = 'gpt9': must be one of"):
        model_files.read_file(path)
