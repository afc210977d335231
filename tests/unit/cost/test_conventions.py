"""The formulas of the papers, compared with the numbers in the papers."""

from minimoe.cost import conventions
from minimoe.cost.architecture import Architecture, Latent

GPT2 = Architecture(vocab=50257, d_model=768, n_layers=12, n_heads=12, dense_ffn_hidden=3072, ffn_type="gelu",
                    tied_embeddings=True, pos="learned", ctx=1024)
TINY = Architecture(vocab=10, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=3, n_routed_experts=4, top_k=2,
                    expert_hidden=5, n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7)


def rows(arch, sequence):
    return {name: flops for name, _, flops in conventions.training_flops(arch, sequence)}


def test_palm_agrees_with_its_table_21():
    # its N of 8.63e9 and 540.35e9 has the table of 256 000 tokens once
    for layers, d_model, heads, tera in ((32, 4096, 16, "0.055"), (118, 18432, 48, "3.28")):
        arch = Architecture(vocab=256_000, d_model=d_model, n_layers=layers, n_heads=heads, n_kv_heads=1, head_dim=256,
                            dense_ffn_hidden=4 * d_model, tied_embeddings=True)
        assert f"{rows(arch, 2048)['PaLM'] / 1e12:.3g}" == tera


def test_nanogpt_agrees_with_its_notebook():
    found = rows(GPT2, 1024)
    assert conventions.nanogpt_forward(conventions.dense_weights(12, 768, 768, 3072), 12, 768, 768, 50257, 1024) == (
        291_648_307_200)
    assert 1024 * found["nanoGPT"] == 1024 * found["ours"] == 874_944_921_600
    assert 1024 * found["PaLM"] == 875_062_886_400


def test_kaplan_and_chinchilla_term_by_term():
    # N = 1000; attention: 2 * 3 layers * 5 tokens * 8 = 240
    assert (conventions.kaplan_forward(1000, 3, 5, 8), conventions.kaplan(1000)) == (2000 + 240, 6000)
    # L = 1, d = 2, H = 3, Q = 5, hidden = 7, V = 11, T = 4: embedding 2 * 4 * 11 * 2 = 176; queries, keys and values
    # 6 * 4 * 2 * 15 = 720; logits 2 * 16 * 15 = 480; softmax 3 * 3 * 16 = 144; mean 480; out 2 * 4 * 15 * 2 = 240;
    # feed-forward 4 * 4 * 2 * 7 = 224; head 176
    weights = conventions.dense_weights(1, 2, 15, 7)
    layers = 720 + 480 + 144 + 480 + 240 + 224
    assert conventions.chinchilla(weights, 1, 3, 5, 2, 11, 4) == 3 * (176 + layers + 176)
    assert conventions.chinchilla(weights, 1, 3, 5, 2, 11, 4, embeddings=False) == 3 * layers


def test_deepseek_moe_agrees_with_its_tables():
    # of DeepSeekMoE 16B and LLaMA2 7B: L, d, V, feed-forward networks that a token uses in all layers, teraFLOPs
    for L, d, V, networks, tera in ((28, 2048, 102_400, 28 * (2 + 6) / 4, 74.4), (32, 4096, 32_000, 32, 187.9)):
        weights = 4 * L * d**2 + 8 * d**2 * networks
        assert round(conventions.deepseek_moe(weights, L, d, d, V, 4096) / 1e12, 1) == tera


def test_the_table_of_a_sparse_model_by_hand():
    # attention 4 * (2 + 2 * 1) * 3 + 6 * 4 = 72 a layer; dense 3 * 4 * 7 = 84; router 4 * 4 = 16; two experts of
    # 3 * 4 * 5 = 60; a shared one 60: weights = 144 + 84 + 16 + 120 + 60 = 424, and norms 5 * 4 = 20.  T = 6.
    assert rows(TINY, 6) == {
        "Kaplan": 6 * 444,
        "PaLM": 6 * (444 + 40) + 12 * 2 * 2 * 3 * 6,
        "Chinchilla": 3 * (2 * 424 + 2 * 2 * (4 * 3 + 3) * 6 + 4 * 40),
        "Chinchilla, layers alone": 3 * (2 * 424 + 2 * 2 * (4 * 3 + 3) * 6),
        "DeepSeekMoE": 6 * (424 - 16) + 12 * 2 * 6 * 6 + 6 * 40,
        "nanoGPT": 3 * (2 * (424 + 40) + 4 * 2 * 6 * 6),
        "ours, causal": 3 * (2 * (424 + 40) + 4 * 2 * 2 * 3 * 3.5),  # (1 + 2 + 3 + 4 + 5 + 6) / 6
        "ours": 3 * (2 * (424 + 40) + 4 * 2 * 2 * 3 * 6),
    }


def test_latent_attention_of_two_stacks_by_hand():
    # queries 4 * 2 * 4 = 32; keys and values 4 * (3 + 1) + 3 * 2 * (3 + 2) = 46; back 2 * 2 * 4 = 16: 94, and a norm of
    # 3; three of them; two dense 3 * 4 * 7 = 84; norms 5 * 4, and 2 * 4 behind the stacks; positions 2 * 32 * 2.
    # Query 4 wide and value 2 wide, so Q = 3.  L = 3 attentions.  T = 6.
    arch = Architecture(vocab=10, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7, encoder_decoder="1+1",
                        mla=Latent(kv_lora_rank=3, qk_nope_head_dim=3, qk_rope_head_dim=1, v_head_dim=2))
    weights, rest = 3 * 94 + 2 * 84, 3 * 3 + 28 + 128
    assert list(rows(arch, 6).values()) == [
        6 * (weights + rest), 6 * (weights + rest + 40) + 12 * 3 * 2 * 3 * 6,
        3 * (2 * weights + 3 * 2 * (4 * 3 + 3) * 6 + 4 * 40), 3 * (2 * weights + 3 * 2 * (4 * 3 + 3) * 6),
        6 * weights + 12 * 3 * 6 * 6 + 6 * 40, 3 * (2 * (weights + 40) + 4 * 3 * 6 * 6),
        3 * (2 * (weights + 40) + 2 * 2 * (4 + 2) * (6 + 3.5 + 6)),  # the encoder, the decoder, and one to the other
        3 * (2 * (weights + 40) + 3 * 2 * 2 * (4 + 2) * 6)]
