"""Bytes by hand, round trips, and what a model's masks save."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import cost, model
from minimoe.config import ModelConfig
from minimoe.sparsity import encodings, masks, savings
from tests import cases

W = np.array([[1.5, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, -1]], np.float32)  # the kept: 1.5, 2, 3, -1
VALUES = np.array([1.5, 2, 3, -1], "<f4").tobytes()


def test_the_bytes_by_hand():
    # bits of the 12 numbers, the first in the lowest: 1001 0000 0101 -> 0b00001001, 0b00001010
    assert encodings.encode("bitmask", W) == bytes([0b00001001, 0b00001010]) + VALUES
    # rows begin at 0, 2, 2 and the end is 4; columns 0 3 1 3; a byte each
    assert encodings.encode("csr", W) == bytes([0, 2, 2, 4, 0, 3, 1, 3]) + VALUES
    assert encodings.encode("dense", W) == W.tobytes()
    # two outputs with four inputs each, two kept: numbers 5 and 7 at 1 and 2, then 6 at 3, filled up with a 0 at 0
    w_DF = np.array([[0, 0], [5, 0], [7, 0], [0, 6]], np.float32)
    assert encodings.encode("n_of_m", w_DF, pattern=(2, 4)) == (
        np.array([5, 7, 0, 6], "<f4").tobytes() + bytes([0b11_00_10_01]))
    assert encodings.n_bytes("csr", (300, 257), 10, 4) == 301 * 4 + 10 * (2 + 4)  # 77,100 needs 4 bytes, 256 needs 2
    assert encodings.n_bytes("csr", (2, 256), 5, 4) == 3 * 2 + 5 * (1 + 4)  # the last of 256 columns is number 255
    assert encodings.n_bytes("n_of_m", (3, 4, 8), 48, 2, (2, 4)) == 48 * 2 + 48 * 2 // 8  # half, and two bits each


@cases.FEW
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 300),
       st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 5), (1, 1)]), st.sampled_from(["<f2", "<f4", ">f4", "<f8"]),
       st.integers(0, 99))
def test_every_encoding_comes_back_and_is_as_long_as_the_formula_says(stack, groups, outputs, pattern, dtype, seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(stack, groups * pattern[1], outputs)).astype(dtype)
    w[rng.random(w.shape) < 0.1] = 0  # zeros that are kept
    mask = masks.n_of_m(rng.random(w.shape), *pattern) & (rng.random(w.shape) < 0.9)
    for name in encodings.ENCODINGS:
        own = pattern if name == "n_of_m" else None
        data = encodings.encode(name, w, mask, own)
        assert isinstance(data, bytes)
        assert len(data) == encodings.n_bytes(name, w.shape, int(mask.sum()), w.itemsize, own)
        back = encodings.decode(name, data, w.shape, w.dtype, own)
        np.testing.assert_array_equal(back, np.where(mask, w, 0).astype(dtype), strict=True)
        assert back.flags.writeable
        for wrong in (data[:-1], data + b"0"):
            with pytest.raises(ValueError, match=f"{len(wrong)} bytes are not a {name} of shape"):
                encodings.decode(name, wrong, w.shape, w.dtype, own)


@pytest.mark.parametrize(("arguments", "message"), [
    (("zip", W), "encoding = 'zip': must be one of dense"), (("csr", [["a"]]), "w has shape .* must be an array"),
    (("csr", W[0]), r"shape = \(4,\): must be that of a matrix"),
    (("csr", W, W > 0, (2, 4)), r"pattern = \(2, 4\): n_of_m needs one"),
    (("n_of_m", W, None, (2, 4)), r"pattern = \(2, 4\): groups of 4 do not divide 3 inputs"),
    (("n_of_m", W, None, (1, 3)), "keeps more than 1 of 3 consecutive inputs of an output"),
    (("csr", W, np.ones(3, bool)), r"mask is bool \(3,\): must be bool \(3, 4\)"),
])
def test_what_cannot_be_encoded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        encodings.encode(*arguments)


def test_a_damaged_csr_is_refused():
    for wrong in (bytes([0, 2, 1, 4, 0, 3, 1, 3]), bytes([1, 2, 2, 4, 0, 3, 1, 3]), bytes([0, 2, 2, 4, 0, 4, 1, 3])):
        with pytest.raises(ValueError, match="are not a csr"):
            encodings.decode("csr", wrong + VALUES, W.shape, W.dtype)


CONFIG = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, d_hidden=12, n_experts=4, top_k=2, max_sequence=8,
                     first_dense_layers=1, d_dense=16)


def test_what_the_masks_of_a_model_save_by_hand():
    expert, head = "layers.1.moe.w_up_EDF", "layers.0.attention.w_o_HPD"
    mask_of = {"layers.0.dense.w_up_DJ": np.ones((8, 16), bool), expert: np.ones((4, 8, 12), bool),
               head: np.ones((2, 4, 8), bool), "embed.w_VD": np.ones((11, 8), bool)}
    mask_of["layers.0.dense.w_up_DJ"][::2] = False  # 64 zeros, of every token: 128 FLOPs
    mask_of[expert][:, 1::2] = False  # 192 zeros, of half of the tokens: 192 FLOPs
    mask_of[head][:, :2] = False  # 32 zeros: 64 FLOPs
    mask_of["embed.w_VD"][0] = False  # 8 zeros of a look-up: none
    config, total = CONFIG, cost.count_parameters(CONFIG).total
    flops = cost.count(config).forward_flops_per_token
    found = savings.record(mask_of, config, flops)
    assert found["parameters"] == {"total": total, "kept": total - 64 - 192 - 32 - 8}
    assert found["masked"] == {"total": 128 + 384 + 64 + 88, "kept": 64 + 192 + 32 + 80, "matrices": 4}
    assert found["forward_flops_per_token"] == {"ideal": flops - 128 - 192 - 64, "numpy": flops}
    rest = 4 * (total - 664)
    assert found["bytes"] == {
        "dense": 4 * total, "bitmask": rest + 16 + 48 + 8 + 11 + 4 * 368,
        # starts of 8, 32, 8 and 11 rows and the ends, of two bytes only for 384 numbers; a byte per column
        "csr": rest + 9 + 33 * 2 + 9 + 12 + 5 * 368}
    del mask_of["embed.w_VD"]  # whose 11 inputs are no groups of 4
    half = savings.record(mask_of, config, flops)["bytes"]
    assert half["2:4"] == 4 * (total - 576) + (4 * 576 + 576 // 4) // 2 and "1:4" not in half and "4:8" in half
    assert savings.skipped_flops({"embed.w_VD": np.zeros((11, 8), bool)}, replace(CONFIG, tie_embeddings=True)) == 176
    text = savings.words(found)
    assert f"{total:,}" in text and "A mask alone saves no time" in text
    saved, best = 1 - found["bytes"]["bitmask"] / (4 * total), min(found["bytes"], key=found["bytes"].get)
    assert best == "bitmask" and text.startswith(f"The masks save {saved:.0%} of the bytes")
    table = savings.change(found, found).splitlines()
    assert all(line.endswith("100.0%") for line in table[2:]) and f"{total - 296:,}" in table[3]
    with pytest.raises(ValueError, match="there is no such parameter"):
        savings.record({"w": np.ones(3, bool)}, config, flops)


def test_the_flops_that_masks_save_are_those_of_the_cut_model():
    """Half of the neurons masked in every layer, and half of the experts' and dense neurons cut: the same FLOPs."""
    mask_of = {}
    for name, weight in model.weights(CONFIG).items():
        letters = name.rpartition("_")[2]
        axis = next((letters.index(letter) for letter in "FJ" if letter in letters), None)
        if axis is not None:
            half = np.arange(weight.shape[axis]) % 2 == 0
            mask_of[name] = np.ones(weight.shape, bool) & np.expand_dims(
                half, [i for i in range(len(weight.shape)) if i != axis])
    dense, cut = (cost.count(config).forward_flops_per_token for config in
                  (CONFIG, replace(CONFIG, d_hidden=6, d_dense=8)))
    assert savings.record(mask_of, CONFIG, dense)["forward_flops_per_token"]["ideal"] == cut
