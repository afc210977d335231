"""Published models: exact numbers of parameters, by part and by hand, and the numbers of their publishers."""

import json
import re
from pathlib import Path

import pytest

from minimoe.cost import model_files, parts, published

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
V2 = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
OTHERS = {
    # as counted from the released weights, or from the models' code in transformers
    "DeepSeek-V2": (235_741_434_880, {"vocab": 102400, "d_model": 5120, "n_layers": 60, "n_heads": 128, "mla": V2,
        "n_routed_experts": 160, "top_k": 6, "expert_hidden": 1536, "n_shared_experts": 2, "dense_first_layers": 1,
        "dense_ffn_hidden": 12288}),
    "GPT-J-6B": (6_050_882_784, {"vocab": 50400, "d_model": 4096, "n_layers": 28, "n_heads": 16, "ffn_type": "gelu",
        "dense_ffn_hidden": 16384, "norm": "LayerNorm", "n_norms": 1, "biases": "dense+norms+head"}),
}
KEPT_BY_OTHERS = {"conventions": "active = total - (E-k)/E * routed-expert params", "models": [
    {"name": "OLMoE-1B-7B", "arch": {
        "vocab": 50304, "d_model": 2048, "n_layers": 16, "dense_first_layers": 0, "moe_every_n": 1, "n_heads": 16,
        "n_kv_heads": 16, "head_dim": 128, "expert_hidden": 1024, "n_routed_experts": 64, "top_k": 8,
        "n_shared_experts": 0, "dense_ffn_hidden": None, "ffn_type": "swiglu", "tied_embeddings": False, "ctx": 4096,
        "mla": None, "qk_norm": True, "router": "softmax over all then top-k, not renormalized", "lb_coef": 0.01,
        "z_coef": 0.001}, "published": {"total": "6.9B"}, "counted": {"total": 6_919_161_856}, "notes": ""},
    {"name": "makeMoE (AviSoori1x)", "arch": {
        "vocab": 65, "d_model": 128, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "head_dim": 16, "norm": "LayerNorm",
        "expert_hidden": 512, "n_routed_experts": 8, "top_k": 2, "ffn_type": "relu", "ctx": 32, "lr": 0.001,
        "router": "noisy top-k, softmax over top-k", "biases": "all but qkv", "pos": "learned", "batch": 16,
        "dropout": 0.1, "optimizer": "AdamW torch defaults", "iters": 5000}, "counted": {"total": 8_996_545}}]}
"""Entries of a table of published models that others keep, with remarks of their own."""

each_key = pytest.mark.parametrize("key", COUNTS)


@each_key
def test_parameters_are_counted_to_the_last_one(key):
    names = "total", "active_incl_all_embeddings", "active_excl_input_embedding", "active_non_embedding"
    model = published.find(key)
    assert published.counts(model) == {"name": model.name} | dict(zip(names, COUNTS[key], strict=True))


def fits(printed, count):
    """Whether a count is within one of the last digit of each printed number: some publishers cut digits off."""
    numbers = re.findall(r"([\d.]+) ?([BM])\b", printed)
    return all(abs(count / {"B": 1e9, "M": 1e6}[unit] - float(number)) <= 10.0 ** -len(number.partition(".")[2])
               for number, unit in numbers) and numbers != []


@each_key
def test_what_publishers_print_follows_from_the_count(key):
    printed, (total, *active) = published.find(key).published, dict.fromkeys(COUNTS[key])
    assert printed["total"] is None or fits(printed["total"], total)
    fitting = [name for name, count in zip(published.CONVENTIONS, active, strict=False) if fits(
        printed["active"] or "", count)]
    assert fitting == [printed["convention"]] or printed["convention"] is None


def test_other_models_and_a_table_that_others_keep_are_counted_to_the_last_one_too(tmp_path):
    for total, description in OTHERS.values():
        assert parts.parameters(model_files.read_architecture(description)).total == total
    path = tmp_path / "others.json"
    path.write_text(json.dumps(KEPT_BY_OTHERS), "utf-8")
    assert [published.counts(model)["total"] for model in model_files.read_file(path)] == [
        entry["counted"]["total"] for entry in KEPT_BY_OTHERS["models"]]


def test_an_unknown_key_is_answered_with_the_nearest_or_else_with_all_keys():
    """A name that differs in its numbers alone is that of a different model."""
    with pytest.raises(ValueError, match="^model = 'QWEN3-30B': is not in the table, did you mean 'qwen3-30b-a3b'"):
        published.find("QWEN3-30B")
    for unknown in ("#", "gpt-4"):
        with pytest.raises(ValueError, match="must be one of .*makemoe$"):
            published.find(unknown)


def test_our_table_is_a_file_that_a_user_could_have_written_and_holds_nothing_that_is_counted():
    published.models().clear()  # what is given away is not ours
    assert {key: model.key for key, model in published.models().items()} == {key: key for key in COUNTS}
    path = Path(published.__file__).with_name("published.json")
    assert [(model.name, model.arch) for model in model_files.read_file(path)] == [
        (model.name, model.arch) for model in published.models().values()]
    entries = json.loads(path.read_text("utf-8"))["models"]
    assert all(set(entry) == {"key", "name", "arch", "published", "source"} for entry in entries)


def test_what_is_printed_stands_next_to_the_count_by_its_convention():
    assert published.printed(published.find("gpt-oss-20b")) == {
        "total": "20.91B", "active": "3.61B", "convention": "without the input embedding", "here": 3_608_307_264,
        "source": "gpt-oss model card, arXiv:2508.10925, table 1, which states the convention"}
    assert published.printed(published.find("gpt-2"))["here"] is None
    assert published.printed(published.find("gpt-2")._replace(published={})) == {}
