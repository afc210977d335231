"""The formulas of the papers, against the numbers that the papers print."""

import pytest

from minimoe.cost import conventions
from minimoe.cost.architecture import Architecture, Latent

GPT2 = Architecture(vocab=50257, d_model=768, n_layers=12, n_heads=12, dense_ffn_hidden=3072, ffn_type="gelu",
                    tied_embeddings=True, pos="learned", ctx=1024)
TINY = Architecture(vocab=10, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=3, n_routed_experts=4, top_k=2,
                    expert_hidden=5, n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7)


def rows(arch, sequence):
    return {name: flops for name, _, flops in conventions.table(arch, sequence)}


def test_kaplan_has_two_flops_a_parameter_forward_and_six_in_training():
    # N = 1000; attention: 2 * 3 layers * 5 tokens * 8 = 240
    assert conventions.kaplan_forward(1000, 3, 5, 8) == 2000 + 240
    assert conventions.kaplan(1000) == 6000


@pytest.mark.parametrize("n, n_layers, n_heads, tera", [
    (8.63e9, 32, 16, "0.0550"), (62.50e9, 64, 32, "0.388"), (540.35e9, 118, 48, "3.28")])
def test_palm_agrees_with_its_table_21(n, n_layers, n_heads, tera):
    # 8B: 6 * 8.63e9 = 51.78e9, and 12 * 32 * 16 * 256 * 2048 = 3.22e9
    assert f"{conventions.palm(n, n_layers, n_heads, 256, 2048) / 1e12:.3g}" == f"{float(tera):.3g}"


@pytest.mark.parametrize("n_layers, d_model, n_heads, tera", [
    (32, 4096, 16, 0.0550), (64, 8192, 32, 0.388), (118, 18432, 48, 3.28)])
def test_palm_agrees_with_its_table_21_from_the_shapes_alone(n_layers, d_model, n_heads, tera):
    # its N of 8.63e9, 62.50e9 and 540.35e9 has the table of 256 000 tokens once
    arch = Architecture(vocab=256_000, d_model=d_model, n_layers=n_layers, n_heads=n_heads, n_kv_heads=1, head_dim=256,
                        dense_ffn_hidden=4 * d_model, tied_embeddings=True)
    assert f"{rows(arch, 2048)['PaLM'] / 1e12:.3g}" == f"{tera:.3g}"


def test_the_weights_of_a_dense_transformer():
    # 3 layers of 4 * 5 * 8 = 160 and 2 * 5 * 7 = 70
    assert conventions.dense_weights(3, 5, 8, 7) == 3 * (160 + 70)


def test_nanogpt_agrees_with_its_notebook():
    weights = conventions.dense_weights(12, 768, 768, 3072)
    assert weights == 12 * 12 * 768**2
    forward = conventions.nanogpt_forward(weights, 12, 768, 768, 50257, 1024)
    assert forward == 291_648_307_200
    assert 3 * forward == 874_944_921_600
    # the notebook's N leaves the positions out: 124 337 664 - 1024 * 768
    assert 1024 * conventions.palm(124_337_664 - 1024 * 768, 12, 12, 64, 1024) == 875_062_886_400


def test_nanogpt_agrees_with_its_notebook_from_the_architecture():
    found = rows(GPT2, 1024)
    assert 1024 * found["nanoGPT"] == 1024 * found["ours"] == 874_944_921_600
    assert 1024 * found["PaLM"] == 875_062_886_400


@pytest.mark.parametrize("n_layers, d_model, hidden, head_width, n_heads, ratio", [
    (10, 640, 2560, 64, 10, 1.03), (20, 1024, 4096, 64, 16, 1.10), (24, 1280, 5120, 128, 10, 1.08),
    (26, 1792, 7168, 128, 14, 1.04), (28, 2048, 8192, 128, 16, 1.03), (40, 3584, 14336, 128, 28, 0.99)])
def test_chinchilla_agrees_with_its_table_a4_without_embeddings_and_head(n_layers, d_model, hidden, head_width, n_heads,
                                                                        ratio):
    width, vocab, T = head_width * n_heads, 32_000, 2048
    weights = conventions.dense_weights(n_layers, d_model, width, hidden)
    # N of the paper has one table, and a fifth matrix in each attention, for relative positions: 73M, 305M, ... 6.8B
    n = weights + n_layers * d_model * width + vocab * d_model
    shape = n_layers, n_heads, head_width, d_model, vocab, T
    whole, without = (conventions.chinchilla(weights, *shape, embeddings=counted) / (6 * n * T)
                      for counted in (True, False))
    assert round(without, 2) == ratio
    assert round(whole, 2) > ratio  # as the appendix says that it counts


def test_chinchilla_term_by_term():
    # L = 1, d = 2, H = 3, Q = 5, hidden = 7, V = 11, T = 4: embedding 2 * 4 * 11 * 2 = 176; queries, keys and values
    # 6 * 4 * 2 * 15 = 720; logits 2 * 16 * 15 = 480; softmax 3 * 3 * 16 = 144; mean 480; out 2 * 4 * 15 * 2 = 240;
    # feed-forward 4 * 4 * 2 * 7 = 224; head 176
    weights = conventions.dense_weights(1, 2, 15, 7)
    layers = 720 + 480 + 144 + 480 + 240 + 224
    assert conventions.chinchilla(weights, 1, 3, 5, 2, 11, 4) == 3 * (176 + layers + 176)
    assert conventions.chinchilla(weights, 1, 3, 5, 2, 11, 4, embeddings=False) == 3 * layers


DEEPSEEK = {
    # name: L, d, V, T, feed-forward blocks that a token uses in all layers, teraFLOPs printed
    "Dense 0.2B, Hash Layer, Switch": (9, 1280, 8000, 2048, 9 * 1, 2.9),
    "GShard 2B": (9, 1280, 8000, 2048, 9 * 2, 4.3),
    "DeepSeekMoE 2B": (9, 1280, 8000, 2048, 9 * (1 + 7) / 4, 4.3),
    "GShard x1.5": (9, 1280, 8000, 2048, 9 * 2 * 1.5, 5.8),
    "Dense x16": (9, 1280, 8000, 2048, 9 * 16, 24.6),
    "DeepSeekMoE 16B": (28, 2048, 102_400, 4096, 28 * (2 + 6) / 4, 74.4),
    "DeepSeek 7B": (30, 4096, 102_400, 4096, 30, 183.5),
    "LLaMA2 7B": (32, 4096, 32_000, 4096, 32, 187.9),
    "DeepSeek 67B": (95, 8192, 102_400, 4096, 95, 2057.5),
    "GShard 137B": (62, 4096, 102_400, 4096, 62 * 2, 572.7),
}


def deepseek_tera(n_layers, d_model, vocab, sequence, blocks):
    weights = 4 * n_layers * d_model**2 + 8 * d_model**2 * blocks
    return round(conventions.deepseek_moe(weights, n_layers, d_model, d_model, vocab, sequence) / 1e12, 1)


@pytest.mark.parametrize("shape", DEEPSEEK.values(), ids=DEEPSEEK)
def test_deepseek_moe_agrees_with_its_tables(shape):
    *shape, tera = shape
    assert deepseek_tera(*shape) == tera


@pytest.mark.parametrize("experts, printed, follows, with_true_widths", [
    (4 + 12, 585.6, 572.7, 585.5), (2 + 6, 374.6, 368.2, 374.6)], ids=["145B", "142B, half activated"])
def test_the_two_largest_of_deepseek_moe_do_not_follow(experts, printed, follows, with_true_widths):
    # an expert is said to be 1/8 of a block; with a hidden layer of 1408 it is 3 * 4096 * 1408 / (8 * 4096^2) = 0.1289
    assert deepseek_tera(62, 4096, 102_400, 4096, 62 * experts / 8) == follows != printed
    assert deepseek_tera(62, 4096, 102_400, 4096, 62 * experts * 3 * 1408 / (8 * 4096)) == with_true_widths


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
        "ours": 3 * (2 * (424 + 40) + 4 * 2 * 2 * 3 * 6),
    }


def test_the_table_of_a_model_with_latent_attention_by_hand():
    # queries 4 * 2 * 4 = 32; keys and values 4 * (3 + 1) + 3 * 2 * (3 + 2) = 46; back 2 * 2 * 4 = 16: 94, and a norm of
    # 3; dense 3 * 4 * 7 = 84; norms 3 * 4 = 12.  Query 4 wide and value 2 wide, so Q = 3.  T = 6.
    arch = Architecture(vocab=10, d_model=4, n_layers=1, n_heads=2, mla=Latent(None, 3, 3, 1, 2), dense_ffn_hidden=7)
    found = rows(arch, 6)
    assert found["Kaplan"] == 6 * (94 + 3 + 84 + 12)
    assert found["PaLM"] == 6 * (193 + 40) + 12 * 2 * 3 * 6
    assert found["Chinchilla"] == 3 * (2 * 178 + 2 * (4 * 3 + 3) * 6 + 4 * 40)
    assert found["DeepSeekMoE"] == 6 * 178 + 12 * 6 * 6 + 6 * 40
    assert found["ours"] == 3 * (2 * (178 + 40) + 2 * 2 * (4 + 2) * 6)


def test_a_decoder_that_also_attends_to_an_encoder_counts_twice():
    # attention 4 * 16 = 64, once in the encoder and twice in the decoder; dense 2 * 4 * 7 = 56 in each.  T = 6.
    arch = Architecture(vocab=10, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7, ffn_type="relu",
                        encoder_decoder="1+1")
    weights = 3 * 64 + 2 * 56
    found = rows(arch, 6)
    assert found["Chinchilla, layers alone"] == 3 * (2 * weights + 3 * 2 * (4 * 2 + 3) * 6)
    assert found["nanoGPT"] == found["ours"] == 3 * (2 * (weights + 40) + 4 * 3 * 4 * 6)


def test_every_row_says_where_it_is_from():
    listed = conventions.table(TINY, 6)
    assert [name for name, _, _ in listed][-1] == "ours"
    assert all(source and isinstance(source, str) for _, source, _ in listed)
    *others, nanogpt, ours = (flops for _, _, flops in listed)
    assert nanogpt == ours  # a notebook that counts each matrix product too
    assert len({*others, ours}) == len(listed) - 1  # no two papers count alike
