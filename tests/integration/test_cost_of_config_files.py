"""Parameters counted from a `config.json`: to the last one those of the model that the transformers library builds."""

import pytest
import torch
import transformers

from minimoe.cost import model_files, parts

SMALL = dict(vocab_size=211, hidden_size=60, num_hidden_layers=7, num_attention_heads=10, num_key_value_heads=5,
             head_dim=14, intermediate_size=52, max_position_embeddings=64, pad_token_id=0)
"""No two terms of a count are alike."""
FOUR = SMALL | {"head_dim": 6, "num_hidden_layers": 4}  # for classes that have no head_dim
MOE = dict(num_local_experts=9, num_experts_per_tok=4)
MORE = dict(num_experts=9, num_experts_per_tok=4)
QWEN = dict(num_experts=9, num_experts_per_tok=4, moe_intermediate_size=23)
DEEP = dict(n_routed_experts=9, num_experts_per_tok=4, moe_intermediate_size=23, n_shared_experts=3,
            first_k_dense_replace=2, n_group=1, topk_group=1)
LATENT = dict(q_lora_rank=17, kv_lora_rank=13, qk_nope_head_dim=11, qk_rope_head_dim=8, v_head_dim=7,
              num_key_value_heads=10, head_dim=None)
SLIDING = dict(use_sliding_window=True, sliding_window=16, max_window_layers=3)
ERNIE = dict(moe_num_experts=9, moe_k=4, moe_num_shared_experts=3, moe_intermediate_size=23, moe_layer_start_index=1,
             moe_layer_end_index=5, moe_layer_interval=2)
GPT_OSS = dict(num_hidden_layers=24, num_local_experts=32)
CASES = [
    ("Llama", SMALL), ("Llama", SMALL | {"attention_bias": True, "mlp_bias": True}), ("Llama", {}),
    ("Mistral", SMALL | {"sliding_window": 16}), ("Mistral", {}), ("Mixtral", SMALL | MOE), ("Mixtral", {}),
    ("Qwen2", SMALL | SLIDING), ("Qwen3", SMALL | SLIDING), ("Qwen3", SMALL | {"attention_bias": True}),
    ("Qwen2Moe", FOUR | QWEN | {"shared_expert_intermediate_size": 31, "decoder_sparse_step": 2}),
    ("Qwen2Moe", FOUR | QWEN | {"mlp_only_layers": [1], "qkv_bias": False} | SLIDING), ("Qwen2Moe", {}),
    ("Qwen3Moe", SMALL | QWEN | {"mlp_only_layers": [0, 5], "decoder_sparse_step": 2} | SLIDING), ("Qwen3Moe", {}),
    ("SmolLM3", FOUR),
    ("Olmo", FOUR), ("Olmo2", FOUR), ("Olmo3", FOUR), ("Olmoe", FOUR | MORE), ("FlexOlmo", FOUR | MORE), ("Olmoe", {}),
    ("DeepseekV2", SMALL | DEEP | LATENT | {"mlp_bias": True, "attention_bias": True}),
    ("DeepseekV2", SMALL | DEEP | LATENT | {"q_lora_rank": None}), ("DeepseekV3", SMALL | DEEP | LATENT),
    ("DeepseekV3", SMALL | DEEP | LATENT | {"attention_bias": True, "tie_word_embeddings": True}), ("DeepseekV3", {}),
    ("GptOss", SMALL | MOE), ("GptOss", GPT_OSS), ("Glm4Moe", {}),
    ("Glm4Moe", SMALL | DEEP | {"use_qk_norm": True, "attention_bias": True}),
    ("Dots1", SMALL | DEEP | {"attention_bias": True, "max_window_layers": 3}), ("Phi3", FOUR),
    ("Phimoe", FOUR | MOE | {"attention_bias": True, "lm_head_bias": True, "sliding_window": 16}), ("Phimoe", {}),
    ("Granite", FOUR | {"mlp_bias": True}), ("GraniteMoe", FOUR | MOE),
    ("GraniteMoeShared", FOUR | MOE | {"shared_intermediate_size": 31}), ("GraniteMoeShared", FOUR | MOE),
    ("Dbrx", dict(vocab_size=211, d_model=60, n_layers=3, n_heads=10, attn_config={"kv_n_heads": 5, "rope_theta": 1e4},
                  ffn_config={"ffn_hidden_size": 52, "moe_num_experts": 9, "moe_top_k": 4})),
    ("Ernie4_5", SMALL | {"use_bias": True}), ("Ernie4_5_Moe", FOUR | ERNIE | {"num_hidden_layers": 7}),
    ("Ernie4_5_Moe", FOUR | ERNIE | {"use_bias": True}), ("Ernie4_5_Moe", {}),
    ("HunYuanDenseV1", SMALL), ("HunYuanMoEV1", SMALL | {"num_experts": 9, "moe_topk": 4, "attention_bias": True}),
    ("MiniMax", SMALL | MOE), ("MiniMaxM2", SMALL | MOE), ("MiniMaxM2", {}), ("Gemma", SMALL), ("Gemma", {}),
    ("Gemma2", SMALL), ("Gemma3Text", SMALL | {"sliding_window": 16}), ("Gemma3Text", {})]
NO_NAME = {"Gemma3Text": "Gemma3ForCausalLM"}


def built(name, options):
    """The configuration, the parameters of its model, and those of its routed experts."""
    config = getattr(transformers, f"{name}Config")(**options)
    with torch.device("meta"):
        net = getattr(transformers, NO_NAME.get(name, f"{name}ForCausalLM"))(config)
    sizes = {key: weight.numel() for key, weight in net.named_parameters()}
    routed = sum(n for key, n in sizes.items() if ".experts." in key and "self_attn" not in key)
    return config, sum(sizes.values()), routed


@pytest.mark.parametrize("name, options, whole", [(*case, whole) for case in CASES for whole in (True, False)
                                                  if whole or len(case[1]) > 2],
                         ids=lambda case: f"{len(case)} keys" if isinstance(case, dict) else str(case))
def test_total_and_active_are_those_of_the_model_that_the_library_builds(name, options, whole, tmp_path):
    config, total, routed = built(name, options)
    config.to_json_file(tmp_path / "config.json", use_diff=not whole)
    [model] = model_files.read_file(tmp_path / "config.json")
    counted, arch, E = parts.parameters(model.arch), model.arch, model.arch.n_routed_experts
    assert counted.total == total
    assert (routed == 0) == arch.dense and (arch.dense or counted.active == total - routed * (E - arch.top_k) // E)
    layers = getattr(config, "layer_types", None)
    if layers and any(kind in str(layers) for kind in ("sliding", "linear")):
        assert arch.attentions == tuple({"full_attention": "full", "linear_attention": "linear"}.get(kind, "window")
                                        for kind in layers)
