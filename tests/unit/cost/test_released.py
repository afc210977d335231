"""Released models beyond the table: their parameters to the last one, as their published code has them.

The totals are those of the models' code in transformers, built from their configurations, without weights.
"""

import pytest

from minimoe.cost import architecture, parts

LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
MODELS = {
    "Llama-3.1-70B": (70_553_706_496, {"vocab": 128256, "d_model": 8192, "n_layers": 80, "n_heads": 64,
        "n_kv_heads": 8, "dense_ffn_hidden": 28672}),
    "Qwen2.5-7B": (7_615_616_512, {"vocab": 152064, "d_model": 3584, "n_layers": 28, "n_heads": 28, "n_kv_heads": 4,
        "dense_ffn_hidden": 18944, "qkv_bias": True}),
    "Gemma-2-9B": (9_241_705_984, {"vocab": 256000, "d_model": 3584, "n_layers": 42, "n_heads": 16, "n_kv_heads": 8,
        "head_dim": 256, "dense_ffn_hidden": 14336, "ffn_type": "geglu", "n_norms": 4, "tied_embeddings": True}),
    "OLMo-7B": (6_888_095_744, {"vocab": 50304, "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "dense_ffn_hidden": 11008, "norm": "without weights"}),
    "OLMo-2-7B": (7_298_617_344, {"vocab": 100352, "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "dense_ffn_hidden": 11008, "qk_norm": True}),
    "Pythia-1B": (1_011_781_632, {"vocab": 50304, "d_model": 2048, "n_layers": 16, "n_heads": 8,
        "dense_ffn_hidden": 8192, "ffn_type": "gelu", "norm": "LayerNorm", "biases": "attention+dense+norms"}),
    "GPT-J-6B": (6_050_882_784, {"vocab": 50400, "d_model": 4096, "n_layers": 28, "n_heads": 16,
        "dense_ffn_hidden": 16384, "ffn_type": "gelu", "norm": "LayerNorm", "n_norms": 1,
        "biases": "dense+norms+head"}),
    "Falcon-7B": (6_921_720_704, {"vocab": 65024, "d_model": 4544, "n_layers": 32, "n_heads": 71, "n_kv_heads": 1,
        "dense_ffn_hidden": 18176, "ffn_type": "gelu", "norm": "LayerNorm", "n_norms": 1, "biases": "norms",
        "tied_embeddings": True}),
    "Falcon-40B": (41_303_293_952, {"vocab": 65024, "d_model": 8192, "n_layers": 60, "n_heads": 128, "n_kv_heads": 8,
        "dense_ffn_hidden": 32768, "ffn_type": "gelu", "norm": "LayerNorm", "biases": "norms",
        "tied_embeddings": True}),
    "Phi-3.5-MoE": (41_873_153_344, {"vocab": 32064, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
        "n_routed_experts": 16, "top_k": 2, "expert_hidden": 6400, "norm": "LayerNorm",
        "biases": "attention+norms+head"}),
    "DBRX": (131_596_523_520, {"vocab": 100352, "d_model": 6144, "n_layers": 40, "n_heads": 48, "n_kv_heads": 8,
        "n_routed_experts": 16, "top_k": 4, "expert_hidden": 10752, "norm": "LayerNorm"}),
    "Kimi-K2": (1_026_408_209_408, {"vocab": 163840, "d_model": 7168, "n_layers": 61, "n_heads": 64, "mla": LATENT,
        "n_routed_experts": 384, "top_k": 8, "expert_hidden": 2048, "n_shared_experts": 1, "dense_first_layers": 1,
        "dense_ffn_hidden": 18432}),
    "GLM-4.5": (352_797_814_784, {"vocab": 151552, "d_model": 5120, "n_layers": 92, "n_heads": 96, "n_kv_heads": 8,
        "head_dim": 128, "qk_norm": "per head", "qkv_bias": True, "n_routed_experts": 160, "top_k": 8,
        "expert_hidden": 1536, "n_shared_experts": 1, "dense_first_layers": 3, "dense_ffn_hidden": 12288}),
    "GLM-4.5-Air": (106_852_245_504, {"vocab": 151552, "d_model": 4096, "n_layers": 46, "n_heads": 96,
        "n_kv_heads": 8, "head_dim": 128, "qkv_bias": True, "n_routed_experts": 128, "top_k": 8,
        "expert_hidden": 1408, "n_shared_experts": 1, "dense_first_layers": 1, "dense_ffn_hidden": 10944}),
    "OPT-6.7B": (6_658_473_984, {"vocab": 50272, "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "dense_ffn_hidden": 16384, "ffn_type": "relu", "biases": True, "pos": "learned", "ctx": 2050,
        "tied_embeddings": True}),
    "Phi-2": (2_779_683_840, {"vocab": 51200, "d_model": 2560, "n_layers": 32, "n_heads": 32,
        "dense_ffn_hidden": 10240, "ffn_type": "gelu", "n_norms": 1, "biases": True}),
    "StarCoder2-15B": (15_655_899_136, {"vocab": 49152, "d_model": 6144, "n_layers": 40, "n_heads": 48,
        "n_kv_heads": 4, "dense_ffn_hidden": 24576, "ffn_type": "gelu", "biases": True, "tied_embeddings": True}),
    "Command-R": (34_980_831_232, {"vocab": 256000, "d_model": 8192, "n_layers": 40, "n_heads": 64,
        "dense_ffn_hidden": 22528, "norm": "LayerNorm", "n_norms": 1, "tied_embeddings": True}),
    "Gemma-3-1B": (999_885_952, {"vocab": 262144, "d_model": 1152, "n_layers": 26, "n_heads": 4, "n_kv_heads": 1,
        "head_dim": 256, "dense_ffn_hidden": 6912, "ffn_type": "geglu", "n_norms": 4, "qk_norm": "per head",
        "tied_embeddings": True}),
}


@pytest.mark.parametrize("total, description", MODELS.values(), ids=MODELS)
def test_a_released_model_is_counted_to_the_last_parameter(total, description):
    assert parts.parameters(architecture.read(description)).total == total


def test_a_layer_of_grok_1_by_hand():
    # 48 query heads, 8 of keys and of values, 128 wide; four norms; 8 experts of 3 * 6144 * 32768, two of them used
    grok = architecture.read({"vocab": 131072, "d_model": 6144, "n_layers": 64, "n_heads": 48, "n_kv_heads": 8,
                              "n_norms": 4, "n_routed_experts": 8, "top_k": 2, "expert_hidden": 32768,
                              "ffn_type": "geglu", "tied_embeddings": True})
    found = {part.name: (part.total, part.active) for part in parts.parts(grok) if part.layer == 0}
    attention, expert = 6144 * (48 + 2 * 8) * 128 + 48 * 128 * 6144, 3 * 6144 * 32768
    assert found == {"attention": (attention, attention), "norms": (4 * 6144, 4 * 6144), "router": (6144 * 8, 6144 * 8),
                     "experts": (8 * expert, 2 * expert)}
