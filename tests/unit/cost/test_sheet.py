"""All costs of a model on one page: each number by hand or from the function that it comes from, and as text."""

import functools
import json
from dataclasses import replace

import pytest

from minimoe.cost import (
    all_to_all,
    architecture,
    conventions,
    deployment,
    formula,
    memory,
    parts,
    published,
    report,
    sheet,
)
from minimoe.cost.deployment import Machine

MACHINE = Machine("one by hand", bandwidth=100.0, flops=1000.0, memory=1e4, link=7.0, host=5.0)
TINY = architecture.Architecture(
    vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4, top_k=2, expert_hidden=3,
    n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7, ctx=6)
"""Weights: embedding 20, norms 20, attention 96, dense 84, router 16, experts 4 * 36, shared 36, head 20: 436; of one
token 364."""
DENSE = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7)
RECORD = sheet.sheet("tiny", TINY, 5, MACHINE)
TEXTS = (1, 4, 16, 64, 256)

each_model = pytest.mark.parametrize("key", published.models())


@functools.cache
def of_published(key, machine="h100", rest="bf16", experts=None):
    model = published.find(key)
    return sheet.sheet(model.name, model.arch, min(2048, model.arch.ctx or 2048), deployment.MACHINES[machine], rest,
                       experts)


def test_the_parameters_by_hand():
    assert RECORD["name"] == "tiny" and RECORD["context"] == 5
    assert RECORD["parameters"] == {"total": 436, "active_incl_all_embeddings": 364,
                                    "active_excl_input_embedding": 344, "active_non_embedding": 324}


@each_model
def test_a_page_and_a_list_have_the_same_names_and_counts(key):
    counted = published.counts(published.find(key))
    assert {"name": counted["name"]} | of_published(key)["parameters"] == counted


def test_the_parts_by_hand():
    # forward FLOPs a token: two a weight that it uses; scores of 2 layers * 2 heads * (2 + 2) * 5 tokens
    expected = {"embedding": (20, 20, 0), "norms": (20, 20, 0), "attention": (96, 96, 192), "router": (16, 16, 32),
                "experts": (144, 72, 144), "shared experts": (36, 36, 72), "dense": (84, 84, 168), "head": (20, 20, 40),
                "attention scores": (0, 0, 160)}
    assert {row["part"]: tuple(row.values())[1:] for row in RECORD["parts"]} == expected
    assert RECORD["forward_flops_per_token"] == 192 + 32 + 144 + 72 + 168 + 40 + 160


def test_the_memory_by_hand():
    of = RECORD["memory"]
    assert of["weights"]["float32"] == 1744 and of["weights"]["bf16"] == of["weights_as_said"] == 872
    assert of["weights"] == {form: memory.weight_bytes(TINY, form) for form in memory.FORMATS}
    assert of["training"] == {"float32": 16 * 436, "mixed precision": 16 * 436}
    assert of["cache_per_token"] == 2 * 8 and of["formats"] == ["bf16", "bf16"]
    said = sheet.sheet("tiny", TINY, 5, MACHINE, "float32", "mxfp4")["memory"]
    assert said["weights_as_said"] == 4 * (436 - 144) + 144 * 4.25 / 8
    assert said["cache_per_token"] == 4 * 8 and said["formats"] == ["float32", "mxfp4"]


def test_a_row_of_decoding_by_hand():
    # one text: norms 40, attention 192, dense 168, router 32, experts 2 * 72, shared 72, head 40, cache 5 * 16
    # 808 FLOPs take 0.808 s, 768 bytes 7.68 s
    assert RECORD["decode"][0] == {
        "texts": 1, "distinct_experts": 2, "weight_bytes": 688, "cache_bytes": 80, "flops": 808,
        "intensity": 808 / 768, "seconds": 7.68, "tokens_per_second": 1 / 7.68, "waits_for": "bytes"}


@pytest.mark.parametrize("arch", [TINY, DENSE], ids=["MoE", "dense"])
def test_the_rows_of_decoding_are_steps(arch):
    machine, found = MACHINE._replace(flops=300.0), []
    for row, texts in zip(sheet.sheet("", arch, 1, machine, "float32", "int4")["decode"], TEXTS, strict=True):
        step = deployment.decode_step(arch, texts, 1, "float32", "int4", "float32")
        assert (row["texts"], row["weight_bytes"], row["cache_bytes"], row["flops"]) == (texts, *step)
        assert row["seconds"] == step.seconds(machine)
        assert row["tokens_per_second"] == texts / step.seconds(machine)
        assert row["distinct_experts"] == (4 * (1 - 0.5**texts) if arch is TINY else 0)
        assert row["waits_for"] == ("bytes" if step.bytes / 100 > step.flops / 300 else "FLOPs")
        found.append(row["waits_for"])
    assert found[0] == "bytes" and found[-1] == "FLOPs"


def test_what_is_from_other_functions():
    machine = MACHINE._replace(flops=300.0)
    record = sheet.sheet("tiny", TINY, 2, machine, "int8", "mxfp4")
    assert record["bytes_read"] == {n: deployment.bytes_read(TINY, n, 2, "int8", "mxfp4", "int8") for n in TEXTS}
    turn = deployment.turning_batch(TINY, machine, 2, rest="int8", experts="mxfp4", cache="int8")
    assert record["turning_batch"] == turn > 1
    wide, half = (deployment.turning_batch(TINY, machine, 2, rest="float32", cache=f) for f in ("float32", "bf16"))
    assert sheet.sheet("", TINY, 2, machine, "float32")["turning_batch"] == wide > half
    # half of four experts, of 36 numbers of 4.25 bits, from a host of 5 bytes/s
    assert record["offload_half"] == [pytest.approx(4 * (1 - 0.5**n) / 2 * 36 * 4.25 / 8 / 5) for n in TEXTS]
    assert record["machine"] == machine._asdict()
    assert [tuple(row.values()) for row in record["conventions"]] == conventions.table(TINY, 2)
    assert list(record["conventions"][0]) == ["name", "source", "training_flops_per_token"]


def test_the_exchange_by_hand():
    # 4 experts on 4 devices; two experts a token, each elsewhere with 3/4: 1.5 vectors of 4 numbers of 2 bytes, there
    # and back in one layer; no two experts share a device.  Two experts take 2 * 72 FLOPs
    assert RECORD["exchange"] == {"ranks": 4, "vectors": 1.5, "vectors_once": 1.5, "bytes": 24, "link_seconds": 24 / 7,
                                  "expert_seconds": 0.144}
    v3 = of_published("deepseek-v3")["exchange"]
    assert v3["ranks"] == 8 and v3["vectors"] == 7
    assert v3["vectors_once"] == all_to_all.expected_vectors(256, 8, 8, once=True) < 7
    assert v3["bytes"] == 58 * 2 * 7 * 7168 * 2


def test_soft_slots_and_dense_models_exchange_nothing():
    assert sheet.sheet("", DENSE, 5, MACHINE)["exchange"] is None
    soft = replace(TINY, router="soft", soft_slots=4)
    assert sheet.sheet("", soft, 4, MACHINE)["exchange"] is None


def test_flops_of_parts_are_those_of_the_formula():
    closed = formula.flops(TINY, 1, 5)
    found = sheet.flops_of_parts(TINY, 5)
    assert sum(found.values()) * 3 * 5 == sum(closed.values())
    assert "embedding" not in found


def test_the_dense_twin_by_hand():
    # experts take 4/2 times; the whole 808 - 144 + 288.  One text reads 688 - 144 + 288 + 80 bytes instead of 768
    twin = RECORD["dense_twin"]
    assert (twin["active_share"], twin["expert_flops"]) == (364 / 436, 2)
    assert twin["flops"] == pytest.approx(952 / 808)
    assert twin["decode_seconds"][0] == pytest.approx(912 / 768)
    # where FLOPs are the slower: all texts compute 144 more
    slow = sheet.dense_twin(TINY, TEXTS, 5, MACHINE._replace(flops=1.0), "bf16", None)
    assert slow["decode_seconds"] == [pytest.approx(952 / 808)] * 5
    assert sheet.dense_twin(DENSE, TEXTS, 5, MACHINE, "bf16", None) is None


def test_the_dense_twin_is_as_good_as_a_dense_model_of_that_size():
    # one block as wide as all four experts, and the shared one beside it: the router and its bytes are all that differ
    arch = replace(TINY, n_shared_experts=0, dense_first_layers=0, dense_ffn_hidden=None)
    dense = replace(DENSE, n_kv_heads=1, dense_ffn_hidden=12)
    twin = sheet.dense_twin(arch, TEXTS, 5, MACHINE._replace(flops=1e9), "bf16", None)
    ours, theirs = (sum(sheet.flops_of_parts(a, 5).values()) for a in (arch, dense))
    router = 2 * 2 * 16
    assert twin["flops"] == pytest.approx((theirs + router) / ours)
    for times, texts in zip(twin["decode_seconds"], TEXTS, strict=True):
        reads = deployment.decode_step(dense, texts, 5).bytes + 2 * 2 * 16
        assert times == pytest.approx(reads / deployment.decode_step(arch, texts, 5).bytes)


def test_a_moe_whose_experts_are_all_chosen_is_its_own_twin():
    twin = sheet.dense_twin(replace(TINY, top_k=4), TEXTS, 5, MACHINE, "bf16", None)
    assert twin == {"active_share": 1, "expert_flops": 1, "flops": 1, "decode_seconds": [1] * 5}


@each_model
def test_the_record_is_json_and_its_parts_add_up(key):
    record = of_published(key)
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again["parameters"] == record["parameters"] and list(again["bytes_read"]) == [str(n) for n in TEXTS]
    for field, whole in (("total", "total"), ("active", "active_incl_all_embeddings")):
        assert sum(row[field] for row in record["parts"]) == record["parameters"][whole]
    assert sum(row["forward_flops_per_token"] for row in record["parts"]) == record["forward_flops_per_token"]
    assert [row["part"] for row in record["parts"]] == [
        name for name in (*parts.NAMES, formula.SCORES) if any(row["part"] == name for row in record["parts"])]


@each_model
@pytest.mark.parametrize("machine, rest, experts", [("h100", "bf16", None), ("ddr5", "float32", "mxfp4")])
def test_no_line_of_the_text_is_too_wide(key, machine, rest, experts):
    lines = report.report(of_published(key, machine, rest, experts)).splitlines()
    assert not [line for line in lines if len(line) > 120 or line != line.rstrip()]


@each_model
def test_the_text_has_a_verdict_for_mixtures_alone(key):
    text, sparse = report.report(of_published(key)), published.find(key).arch.n_routed_experts > 0
    assert text.startswith(published.find(key).name)
    assert ("What is saved:" in text) == ("half of the experts" in text) == ("devices" in text) == sparse


def test_the_text_says_the_numbers_of_the_record():
    text = " ".join(report.report(of_published("mixtral-8x7b")).split())
    # 46,702,792,704 parameters of 2 bytes, 93.4 GB; 12,879,925,248 / 46,702,792,704 = 27.6 %;  16 bytes each: 747 GB
    # a token keeps 2 * 32 * 8 * 128 numbers of 2 bytes = 131 kB, 2,048 of them 268 MB; four texts use 5.47 of 8 experts
    for words in ("46,702,792,704", "12,879,925,248", "27.6%", "93.4 GB", "747 GB", "131 kB a token", "268 MB a text",
                  "2,048 tokens", "NVIDIA H100 SXM", " 5.5 ", "28% of the parameters are active", "4.0 times fewer",
                  "it waits for bytes whatever the number of texts", "arXiv:2001.08361"):
        assert words in text, words


def test_a_model_that_turns_says_from_where_on():
    record = sheet.sheet("tiny", TINY, 1, MACHINE._replace(flops=300.0))
    assert f"from {record['turning_batch']:,} texts on it waits for FLOPs" in report.report(record)
    mixed = sheet.sheet("tiny", TINY, 1, MACHINE, "bf16", "mxfp4")
    assert "bf16, experts in mxfp4" in report.report(mixed) and "bf16, experts" not in report.report(record)


@pytest.mark.parametrize("n, words", [
    (0, "0"), (1, "1"), (7.25, "7.25"), (999, "999"), (999.4, "999"), (999.6, "1 k"), (1000, "1 k"), (12_345, "12.3 k"),
    (999_400, "999 k"), (999_600, "1 M"), (46.7e9, "46.7 G"), (1e12, "1 T"), (999.6e12, "1 P"), (1e15, "1 P"),
    (1.2e18, "1200 P"), (7e20, "700000 P"), (7e28, "7e+28"), (0.25, "0.25")])
def test_a_quantity_has_three_digits_and_a_letter(n, words):
    assert report.quantity(n) == words
    number, _, letter = words.partition(" ")
    assert report.quantity(n, "B") == f"{number} {letter}B"


@pytest.mark.parametrize("n, words", [
    (0, "0"), (1234.5, "1,234"), (671_026_404_352, "671,026,404,352"), (10**15 - 1, "999,999,999,999,999"),
    (10**15, "1 P"), (6 * 10**40, "6e+40")])
def test_a_whole_number_is_written_in_full_while_there_is_room(n, words):
    assert report.whole(n) == words


def test_a_table_is_aligned():
    text = report.table([("name", "n", "words"), ("a", "1,000", "x y"), ("bcdef", "2", "z")], left=(0, 2))
    # name is as wide as bcdef, n as 1,000 and at the right, the line below as long as the longest
    assert text.split("\n") == ["name       n  words", "-------------------", "a      1,000  x y", "bcdef      2  z"]
    assert report.table([("a", "b"), ("1", "22")]) == "a   b\n-----\n1  22"


def test_what_was_counted_says_where_it_differs():
    row = {"part": "dense", "forward": 10, "backward": 20, "formula": 30}
    counted = {"batch": 2, "sequence": 3, "groups": 1, "of": "random tokens", "tokens": 6, "training_flops": 60,
               "padding_flops": 0,
               "parts": [row, row | {"part": "head", "formula": 1031}], "layers": []}
    same, differs = report.of_counted(counted).splitlines()[3:5]
    assert same.split() == ["dense", "10", "20", "50.0%", "the", "same"]
    assert differs.split() == ["head", "10", "20", "50.0%", "1,031:", "DIFFERS"]
    assert "2 x 3 random tokens, counted" in report.of_counted(counted)
    assert report.of_counted(counted).endswith("together 60, 10 a token")
    assert "2 x 3 random tokens, in 2 groups, counted" in report.of_counted(counted | {"groups": 2})


def test_empty_slots_and_drops_are_shares():
    counted = {"batch": 1, "sequence": 8, "groups": 1, "of": "random tokens", "tokens": 8, "training_flops": 400,
               "padding_flops": 100,
               "parts": [], "layers": [{"layer": 0, "chosen": 8, "kept": 6, "run": 12},
                                       {"layer": 2, "chosen": 8, "kept": 8, "run": 12}]}
    text = report.of_counted(counted)
    assert "25.0% of the FLOPs went into empty slots" in text and "12.5% of the assignments had no room" in text
    assert text.splitlines()[-2].split() == ["2", "8", "8", "12"]


def test_what_a_token_sends_by_hand():
    # 16 experts on 8 devices, 4 a token, in one of two layers: 4 * 7/8 vectors leave, there and back, of 4 numbers
    arch = replace(TINY, n_routed_experts=16, top_k=4)
    found = sheet.exchange(arch, MACHINE._replace(link=10.0, flops=100.0), "bf16")
    assert (found["ranks"], found["vectors"], found["bytes"]) == (8, 3.5, 2 * 2 * 4 * 3.5)
    assert found["vectors_once"] < 3.5 and found["link_seconds"] == 5.6
    assert found["expert_seconds"] == 2 * 4 * 36 / 100
    assert sheet.exchange(arch, MACHINE, "float32")["bytes"] == 2 * found["bytes"]
    assert sheet.exchange(arch, MACHINE, "int4")["bytes"] == found["bytes"]  # weights are packed, vectors are not
    assert sheet.exchange(DENSE, MACHINE, "bf16") is None
