"""Published models: parameters to the last one, by part and by hand, and what their publishers print."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from minimoe.cost import architecture, parts, published

COUNTS = {
    # key: total, active with all embeddings, without the input embedding, without embeddings
    "gpt-2": (124_439_808, 124_439_808, 124_439_808, 85_056_000),
    "llama-2-7b": (6_738_415_616, 6_738_415_616, 6_607_343_616, 6_476_271_616),
    "mistral-7b": (7_241_732_096, 7_241_732_096, 7_110_660_096, 6_979_588_096),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248, 12_617_781_248),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688, 1_075_972_096),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, 2_378_008_576, 2_066_843_648),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776, 2_730_702_848),
    "deepseek-v2-lite": (15_706_484_224, 2_661_150_208, 2_451_435_008, 2_241_719_808),
    "deepseek-v3": (671_026_404_352, 37_552_282_624, 36_625_603_584, 35_698_924_544),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3_608_307_264, 3_029_173_824),
    "switch-base-8": (619_339_008, 222_977_280, 222_977_280, 198_302_976),
    "deepseekmoe-16b": (16_375_728_128, 2_828_650_496, 2_618_935_296, 2_409_220_096),
    # 8 320 of the embedding; 4 096 of positions and 8 385 of the head, with its biases
    "makemoe": (8_996_545, 2_674_369, 2_674_369 - 8_320, 2_674_369 - 8_320 - 4_096 - 8_385),
}
BY_PART = {
    # key: embedding, positions, norms, attention, router, experts, shared experts, dense, head
    "gpt-2": (38_597_376, 786_432, 38_400, 28_348_416, 0, 0, 0, 56_669_184, 0),
    "llama-2-7b": (131_072_000, 0, 266_240, 2_147_483_648, 0, 0, 0, 4_328_521_728, 131_072_000),
    "mistral-7b": (131_072_000, 0, 266_240, 1_342_177_280, 0, 0, 0, 5_637_144_576, 131_072_000),
    "mixtral-8x7b": (131_072_000, 0, 266_240, 1_342_177_280, 1_048_576, 45_097_156_608, 0, 0, 131_072_000),
    "olmoe-1b-7b": (103_022_592, 0, 133_120, 268_435_456, 2_097_152, 6_442_450_944, 0, 0, 103_022_592),
    "qwen1.5-moe-a2.7b": (311_164_928, 0, 100_352, 402_800_640, 2_949_120, 12_457_082_880, 830_521_344, 0, 311_164_928),
    "qwen3-30b-a3b": (311_164_928, 0, 210_944, 905_969_664, 12_582_912, 28_991_029_248, 0, 0, 311_164_928),
    "deepseek-v2-lite": (209_715_200, 0, 126_464, 371_589_120, 3_407_872, 14_394_851_328, 449_839_104, 67_239_936,
                         209_715_200),
    "deepseek-v3": (926_679_040, 0, 1_006_592, 11_413_422_080, 106_430_464, 653_908_770_816, 2_554_331_136,
                    1_189_085_184, 926_679_040),
    "gpt-oss-20b": (579_133_440, 0, 141_120, 637_203_456, 2_212_608, 19_116_933_120, 0, 0, 579_133_440),
    "switch-base-8": (24_674_304, 0, 47_616, 84_935_424, 73_728, 452_984_832, 0, 56_623_104, 0),
    "deepseekmoe-16b": (209_715_200, 0, 116_736, 469_762_048, 3_538_944, 14_948_499_456, 467_140_608, 67_239_936,
                        209_715_200),
    # of each of 8 layers: two norms of 256; 3 * 128 * 128 and 128 * 128 + 128; two matrices 128 * 8 with 8 biases each;
    # 8 experts of 2 * 128 * 512 + 512 + 128.  A norm of 256 behind them
    "makemoe": (8_320, 4_096, 8 * 512 + 256, 8 * 65_664, 8 * 2_064, 8 * 8 * 131_712, 0, 0, 8_385),
}
GPT2 = {"vocab": 50257, "ffn_type": "gelu", "pos": "learned", "ctx": 1024, "biases": True, "tied_embeddings": True}
V2 = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
OTHERS = {
    # as counted from the released weights
    "GPT-2 medium": (354_823_168, {**GPT2, "d_model": 1024, "n_layers": 24, "n_heads": 16, "dense_ffn_hidden": 4096}),
    "GPT-2 large": (774_030_080, {**GPT2, "d_model": 1280, "n_layers": 36, "n_heads": 20, "dense_ffn_hidden": 5120}),
    "GPT-2 XL": (1_557_611_200, {**GPT2, "d_model": 1600, "n_layers": 48, "n_heads": 25, "dense_ffn_hidden": 6400}),
    "T5-Base": (222_903_552, {"vocab": 32128, "d_model": 768, "n_layers": 24, "n_heads": 12, "dense_ffn_hidden": 3072,
                              "ffn_type": "relu", "tied_embeddings": True, "encoder_decoder": "12+12"}),
    "Llama-2-13B": (13_015_864_320, {"vocab": 32000, "d_model": 5120, "n_layers": 40, "n_heads": 40,
                                     "dense_ffn_hidden": 13824}),
    "Llama-3-8B": (8_030_261_248, {"vocab": 128256, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8,
                                   "dense_ffn_hidden": 14336}),
    "Mixtral-8x22B": (140_620_634_112, {"vocab": 32000, "d_model": 6144, "n_layers": 56, "n_heads": 48, "n_kv_heads": 8,
                                        "n_routed_experts": 8, "top_k": 2, "expert_hidden": 16384}),
    "Qwen3-235B-A22B": (235_093_634_560, {
        "vocab": 151936, "d_model": 4096, "n_layers": 94, "n_heads": 64, "n_kv_heads": 4, "head_dim": 128,
        "qk_norm": "per head", "n_routed_experts": 128, "top_k": 8, "expert_hidden": 1536}),
    "gpt-oss-120b": (116_829_156_672, {
        "vocab": 201088, "d_model": 2880, "n_layers": 36, "n_heads": 64, "n_kv_heads": 8, "head_dim": 64,
        "sinks": "1 per head", "biases": "attention+router+experts", "n_routed_experts": 128, "top_k": 4,
        "expert_hidden": 2880}),
    "DeepSeek-V2": (235_741_434_880, {
        "vocab": 102400, "d_model": 5120, "n_layers": 60, "n_heads": 128, "mla": V2, "n_routed_experts": 160,
        "top_k": 6, "expert_hidden": 1536, "n_shared_experts": 2, "dense_first_layers": 1, "dense_ffn_hidden": 12288}),
}
UNITS = {"B": 9, "M": 6}
CONVENTIONS = ("all embeddings", "without the input embedding", "no embeddings")

each_key = pytest.mark.parametrize("key", COUNTS)


def layer(key, i):
    """Parameters of layer i by part, all and active."""
    found = [part for part in parts.parts(published.find(key).arch) if part.layer == i]
    return {part.name: part.total for part in found}, {part.name: part.active for part in found}


def test_the_table_has_the_thirteen_models():
    assert set(published.models()) == set(COUNTS) == set(BY_PART)
    assert all(model.key == key and model.source for key, model in published.models().items())


@each_key
def test_parameters_are_counted_to_the_last_one(key):
    total, active, without_input, without_embeddings = COUNTS[key]
    model = published.find(key)
    assert published.counts(model) == {
        "name": model.name, "total": total, "active_incl_all_embeddings": active,
        "active_excl_input_embedding": without_input, "active_non_embedding": without_embeddings}


@each_key
def test_each_part_is_counted_to_the_last_parameter(key):
    found = dict.fromkeys(parts.NAMES, 0)
    for part in parts.parts(published.find(key).arch):
        found[part.name] += part.total
    assert found == dict(zip(parts.NAMES, BY_PART[key], strict=True))
    assert sum(BY_PART[key]) == COUNTS[key][0]


def fits(printed, count):
    """Whether a count is within one of the last digit of each printed number: some publishers cut digits off."""
    numbers = re.findall(r"([\d.]+) ?([BM])\b", printed)
    return all(abs(count / 10 ** UNITS[unit] - float(number)) <= 10.0 ** -len(number.partition(".")[2])
               for number, unit in numbers) and numbers != []


@each_key
def test_what_publishers_print_follows_from_the_count(key):
    printed, (total, *active) = published.find(key).published, COUNTS[key]
    assert set(printed) == {"total", "active", "convention"}
    assert printed["total"] is None or fits(printed["total"], total)
    if printed["convention"] is None:
        assert printed["active"] is None or fits(printed["active"], active[0])
    else:
        assert [name for name, count in zip(CONVENTIONS, active, strict=True) if fits(printed["active"], count)] == [
            printed["convention"]]


def test_a_layer_of_deepseek_v3_by_hand():
    # queries 7168 * 1536 + 1536 * 128 * 192; keys and values 7168 * (512 + 64) + 512 * 128 * (128 + 128); back
    # 128 * 128 * 7168.  Two norms of 7168, one of the 1536 and one of the 512.
    attention = 11_010_048 + 37_748_736 + 4_128_768 + 16_777_216 + 117_440_512
    expert = 3 * 7168 * 2048
    total, active = layer("deepseek-v3", 3)
    assert total == {"attention": attention, "norms": 2 * 7168 + 2048, "router": 7168 * 256, "experts": 256 * expert,
                     "shared experts": expert}
    assert active == {**total, "experts": 8 * expert}
    assert layer("deepseek-v3", 2)[0] == {"attention": attention, "norms": 16_384, "dense": 3 * 7168 * 18432}


def test_a_layer_of_gpt_oss_by_hand():
    # queries 2880 * 4096 + 4096; keys and values 2 * (2880 * 512 + 512); back 4096 * 2880 + 2880; 64 sinks
    attention = 11_800_576 + 2_950_144 + 11_799_360 + 64
    expert = 3 * 2880 * 2880 + 2 * 2880 + 2880  # with biases of gate, up and down
    total, active = layer("gpt-oss-20b", 0)
    assert total == {"attention": attention, "norms": 2 * 2880, "router": 2880 * 32 + 32, "experts": 32 * expert}
    assert active == {**total, "experts": 4 * expert}


def test_a_layer_of_each_qwen_by_hand():
    # 1.5: four matrices 2048 * 2048 and biases of three; the shared expert is 5632 wide and has a gate of 2048
    assert layer("qwen1.5-moe-a2.7b", 0)[0] == {
        "attention": 4 * 2048**2 + 3 * 2048, "norms": 2 * 2048, "router": 2048 * 60, "experts": 60 * 3 * 2048 * 1408,
        "shared experts": 3 * 2048 * 5632 + 2048}
    # 3: 32 query heads and 4 of keys and of values, 128 wide; a norm of 128 for queries and one for keys
    assert layer("qwen3-30b-a3b", 47)[0] == {
        "attention": 2048 * (32 + 2 * 4) * 128 + 32 * 128 * 2048, "norms": 2 * 2048 + 2 * 128, "router": 2048 * 128,
        "experts": 128 * 3 * 2048 * 768}


def test_the_norms_of_olmoe_are_as_wide_as_all_heads():
    assert layer("olmoe-1b-7b", 0)[0]["norms"] == 2 * 2048 + 2 * 2048


def test_every_second_layer_of_switch_has_experts():
    assert published.find("switch-base-8").arch.kinds == ("dense", "moe") * 12
    # a decoder layer has a second attention, and a norm before it
    assert layer("switch-base-8", 12)[0] == {"attention": 8 * 768**2, "norms": 3 * 768, "dense": 2 * 768 * 3072}


@pytest.mark.parametrize("total, description", OTHERS.values(), ids=OTHERS)
def test_other_released_models_are_counted_to_the_last_parameter(total, description):
    assert parts.parameters(architecture.read(description)).total == total


@pytest.mark.parametrize("total, description", OTHERS.values(), ids=OTHERS)
def test_they_are_counted_alike_with_nulls_floats_and_capitals(total, description):
    loose = {field.name: None for field in fields(architecture.Architecture)} | {
        name: value.upper() if isinstance(value, str) else float(value) if type(value) is int else value
        for name, value in description.items()}
    assert parts.parameters(architecture.read(loose)).total == total


def test_an_unknown_key_is_answered_with_all_keys_and_the_nearest():
    with pytest.raises(ValueError, match="model = 'mixtral': .* gpt-2, .*makemoe; did you mean 'mixtral-8x7b'"):
        published.find("mixtral")
    with pytest.raises(ValueError, match="model = 'QWEN3-30B': .*did you mean 'qwen3-30b-a3b'"):
        published.find("QWEN3-30B")
    with pytest.raises(ValueError, match="makemoe$"):
        published.find("#")
    for key in (None, 3, ["gpt-2"]):
        with pytest.raises(ValueError, match="must be one of"):
            published.find(key)


def test_the_table_given_away_is_not_ours():
    published.models().clear()
    assert len(published.models()) == len(COUNTS)


def test_our_table_is_a_file_that_a_user_could_have_written():
    path = Path(published.__file__).with_name("published.json")
    assert [(model.name, model.arch) for model in published.read_file(path)] == [
        (model.name, model.arch) for model in published.models().values()]


def test_the_table_holds_nothing_that_is_counted():
    entries = json.loads(Path(published.__file__).with_name("published.json").read_text("utf-8"))["models"]
    assert all(set(entry) == {"key", "name", "arch", "published", "source"} for entry in entries)


def test_the_table_is_not_read_before_it_is_asked_for():
    code = ("import minimoe.cost.published as p; first = p._table.cache_info().currsize; p.models(); "
            "print(first, p._table.cache_info().currsize)")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "1"]
