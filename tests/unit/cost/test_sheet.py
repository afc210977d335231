"""All costs of a model on one page: each number by hand or from the function that it comes from, and as text."""

from dataclasses import replace

import pytest

from minimoe.cost import architecture, deployment, formula, memory, parts, published, quantities, report, sheet

MACHINE = deployment.Machine("one by hand", bandwidth=100.0, flops=1000.0, memory=1e4, link=7.0, host=5.0)
TINY = architecture.Architecture(
    vocab=5, d_model=4, n_layers=2, n_heads=2, n_kv_heads=1, n_routed_experts=4, top_k=2, expert_hidden=3,
    n_shared_experts=1, dense_first_layers=1, dense_ffn_hidden=7, ctx=6)
"""Weights: embedding 20, norms 20, attention 96, dense 84, router 16, experts 4 * 36, shared 36, head 20: 436; of one
token 364."""
DENSE = architecture.Architecture(vocab=5, d_model=4, n_layers=2, n_heads=2, dense_ffn_hidden=7)
RECORD, BATCHES = sheet.sheet("tiny", TINY, 5, MACHINE), (1, 4, 16, 64, 256)


def of_published(key):
    model = published.find(key)
    record = sheet.sheet(model.name, model.arch, 1024, deployment.MACHINES["h100"])
    return record | {"published": published.printed(model)}


def test_a_record_by_hand():
    assert (RECORD["name"], RECORD["context"], RECORD["machine"]) == ("tiny", 5, MACHINE._asdict())
    assert RECORD["parameters"] == {"total": 436, "active_incl_all_embeddings": 364,
                                    "active_excl_input_embedding": 344, "active_non_embedding": 324}
    # forward FLOPs per token: two per weight that it uses; scores of 2 layers * 2 heads * (2 + 2) * 2 * 5 tokens, of
    # which a causal kernel computes (1 + 2 + 3 + 4 + 5) / 5 = 3
    expected = {"embedding": (20, 20, 0), "norms": (20, 20, 0), "attention": (96, 96, 192), "router": (16, 16, 32),
                "experts": (144, 72, 144), "shared experts": (36, 36, 72), "dense": (84, 84, 168), "head": (20, 20, 40),
                "attention scores": (0, 0, 96)}
    assert {row["part"]: tuple(row.values())[1:] for row in RECORD["parts"]} == expected
    assert RECORD["forward_flops_per_token"] == 192 + 32 + 144 + 72 + 168 + 40 + 96 == 744
    assert RECORD["forward_flops_by_scores"] == {"causal": 744, "all": 808} and RECORD["scores"] == "causal"
    assert sum(sheet.flops_of_parts(TINY, 5).values()) == 744  # causal unless asked for more
    every = sheet.sheet("tiny", TINY, 5, MACHINE, causal=False)
    assert (every["scores"], every["forward_flops_per_token"], every["dense_twin"]["flops"]) == ("all", 808, 952 / 808)
    # one sequence: norms 40, attention 192, dense 168, router 32, experts 2 * 72, shared 72, head 40, cache 5 * 16
    # 808 FLOPs take 0.808 s, 768 bytes 7.68 s
    assert RECORD["decode"][0] == {
        "batch_size": 1, "distinct_experts": 2, "weight_bytes": 688, "cache_bytes": 80, "flops": 808,
        "intensity": 808 / 768, "seconds": 7.68, "tokens_per_second": 1 / 7.68, "bound_by": "bytes"}
    # 4 experts on 4 devices; two experts per token, each elsewhere with 3/4: 1.5 vectors of 4 numbers of 2 bytes, there
    # and back in one layer; no two experts share a device.  Two experts take 2 * 72 FLOPs
    assert RECORD["exchange"] == {"ranks": 4, "vectors": 1.5, "vectors_once": 1.5, "bytes": 24, "link_seconds": 24 / 7,
                                  "expert_seconds": 0.144}
    held = RECORD["memory"]
    assert held["weights"] == {form: memory.weight_bytes(TINY, form) for form in memory.FORMATS}
    assert held["weights"]["bf16"] == held["weights_as_said"] == 872
    assert held["training"] == {"float32": 16 * 436, "mixed precision": 16 * 436}
    assert held["cache_per_token"] == 2 * 8 and held["formats"] == ["bf16", "bf16"]
    held = sheet.sheet("tiny", TINY, 5, MACHINE, "float32", "mxfp4")["memory"]
    assert held["weights_as_said"] == 4 * (436 - 144) + 144 * 4.25 / 8
    assert held["cache_per_token"] == 4 * 8 and held["formats"] == ["float32", "mxfp4"]


def test_the_rows_of_decoding_are_steps():
    machine = MACHINE._replace(flops=300.0)
    record = sheet.sheet("tiny", TINY, 2, machine, "int8", "mxfp4")
    for row, batch in zip(record["decode"], BATCHES, strict=True):
        step = deployment.decode_step(TINY, batch, 2, "int8", "mxfp4", "int8")
        assert (row["batch_size"], row["weight_bytes"], row["cache_bytes"], row["flops"]) == (batch, *step)
        assert row["tokens_per_second"] == batch / row["seconds"] == batch / step.seconds(machine)
        assert row["distinct_experts"] == 4 * (1 - 0.5**batch)
        assert row["bound_by"] == ("bytes" if step.bytes / 100 > step.flops / 300 else "FLOPs")
    assert record["decode"][0]["bound_by"] == "bytes" and record["decode"][-1]["bound_by"] == "FLOPs"
    assert record["bytes_read"] == {n: deployment.bytes_read(TINY, n, 2, "int8", "mxfp4", "int8") for n in BATCHES}
    turn = deployment.turning_batch(TINY, machine, 2, rest="int8", experts="mxfp4", cache="int8")
    assert record["turning_batch"] == turn > 1
    # half of four experts, of 36 numbers of 4.25 bits, from a host of 5 bytes/s
    assert record["offload_half"] == [pytest.approx(4 * (1 - 0.5**n) / 2 * 36 * 4.25 / 8 / 5) for n in BATCHES]
    assert [row["training_flops_per_token"] for row in record["conventions"][-2:]] == [
        3 * record["forward_flops_by_scores"][scores] for scores in ("causal", "all")]


def test_what_a_token_sends_by_hand():
    # 16 experts on 8 devices, 4 a token, in one of two layers: 4 * 7/8 vectors leave, there and back, of 4 numbers
    arch = replace(TINY, n_routed_experts=16, top_k=4)
    found = sheet.expert_parallelism(arch, MACHINE._replace(link=10.0, flops=100.0), "bf16")
    assert (found["ranks"], found["vectors"], found["bytes"]) == (8, 3.5, 2 * 2 * 4 * 3.5)
    assert (found["link_seconds"], found["expert_seconds"]) == (5.6, 2 * 4 * 36 / 100)
    assert sheet.expert_parallelism(arch, MACHINE, "float32")["bytes"] == 2 * found["bytes"]
    assert sheet.expert_parallelism(arch, MACHINE, "int4")["bytes"] == found["bytes"]  # vectors are not packed
    for none in (DENSE, replace(TINY, n_routed_experts=1, top_k=1), replace(TINY, router="soft", soft_slots=4)):
        assert sheet.expert_parallelism(none, MACHINE, "bf16") is None


def test_the_dense_twin_by_hand():
    # all four experts for each token: 2 * 72 FLOPs more than 808; 144 bytes more than 768 are read
    twin = RECORD["dense_twin"]
    assert (twin["active_share"], twin["expert_flops"], twin["flops"]) == (364 / 436, 2, (744 + 144) / 744)
    assert twin["decode_seconds"][0] == pytest.approx(912 / 768)
    # where FLOPs are the slower: all sequences compute 144 more
    slow = sheet.dense_twin(TINY, BATCHES, 5, MACHINE._replace(flops=1.0), "bf16", None)
    assert slow["decode_seconds"] == [pytest.approx(952 / 808)] * 5
    assert sheet.dense_twin(DENSE, BATCHES, 5, MACHINE, "bf16", None) is None
    every = sheet.dense_twin(replace(TINY, top_k=4), BATCHES, 5, MACHINE, "bf16", None)
    assert every == {"active_share": 1, "expert_flops": 1, "flops": 1, "decode_seconds": [1] * 5}


def test_the_shape_in_words():
    assert sheet.shape(TINY) == (
        "5 tokens in the vocabulary, width 4, 2 heads, 1 of keys and values, rotary positions; 1 layer with a swiglu "
        "block of 7; 1 layer with 2 of 4 and 1 shared swiglu experts of 3 per token; head separate from the embedding")
    # one expert is a dense block as wide as it and the shared one together
    single = sheet.shape(replace(TINY, n_routed_experts=1, top_k=1, tied_embeddings=True))
    assert "; 1 layer with a swiglu block of 7; 1 layer with a swiglu block of 6; head tied to" in single
    assert "128 heads, latent attention of width 512, rotary" in sheet.shape(published.find("deepseek-v3").arch)
    hybrid = replace(TINY, n_layers=5, attention=("linear", "window", "full"), window=4)
    assert "values, attention to the last 4 tokens in 2 of 5 layers, linear attention in 2 of 5" in sheet.shape(hybrid)


@pytest.mark.parametrize("key", ["gpt-2", "mixtral-8x7b", "deepseek-v3", "switch-base-8"])
def test_the_record_adds_up_and_the_report_leads_with_the_answer_in_eighty_columns(key, monkeypatch):
    record = of_published(key)
    assert sum(row["forward_flops_per_token"] for row in record["parts"]) == record["forward_flops_per_token"]
    names = [row["part"] for row in record["parts"]]
    assert names == [name for name in (*parts.NAMES, formula.SCORES) if name in names]
    monkeypatch.setenv("COLUMNS", "80")
    text, counts = report.report(record, detail=True), list(published.counts(published.find(key)).values())
    name, *answer = (block.splitlines() for block in text.split("\n\n"))
    assert name[0] == counts[0] and all(len(line) <= 80 and line == line.rstrip() for line in text.splitlines())
    sparse = record["dense_twin"] is not None
    assert answer[0][0].startswith("What is saved: ") == ("half of the experts" in text) == sparse
    assert [line.split()[-2] for line in answer[sparse][2:6]] == [f"{n:,}" for n in counts[1:]]
    short = report.report(record)
    assert short.split("\n\n")[:2 + sparse] == text.split("\n\n")[:2 + sparse] and short.count("\n") < 35
    assert max(map(len, short.splitlines())) <= 80 and short.endswith("--detail")


def test_the_report_has_the_numbers_of_the_record():
    text = " ".join(report.report(of_published("mixtral-8x7b"), detail=True).split())
    # 46,702,792,704 parameters of 2 bytes, 93.4 GB; 12,879,925,248 / 46,702,792,704 = 27.6 %;  16 bytes each: 747 GB
    # a token keeps 2 * 32 * 8 * 128 numbers of 2 bytes = 131 kB, 1,024 of them 134 MB; four tokens use 5.47 of 8
    # Kaplan counts 6 * 12,617,781,248, ours 6 * (12,617,781,248 - 266,240 + 131,072,000) + 12 * 32 * 4096 * 1024
    for words in ("27.6%", "93.4 GB", "training: 747 GB in float32", "KV cache: 131 kB per token, 134 MB per sequence "
                  "of 1,024 tokens", "on NVIDIA H100 SXM", "sequences of 1,024 tokens, bf16, at", " 5.5 ", "published: "
                  "46.7B (paper 47B), active 12.9B (paper 13B), which counts all embeddings (12,879,925,248 here)",
                  "28% of the parameters are active", "take 4.0 times fewer", "memory-bound at every batch size",
                  "3.6 at batch size 1, ", "75.7 G 0.969 arXiv:2001.08361"):
        assert words in text, words
    # 12 of 24 layers keep 128 tokens: 12 * 2,048 bytes per token, 1,024 times and 128 times: 25.2 + 3.1 MB
    short = " ".join(report.report(of_published("mixtral-8x7b")).split())
    # 93.4 GB and 134 MB are more than its 80 GB; 2 * 12,748,853,248 + 134e6 bytes at 3.35e12 bytes/s take 7.65 ms
    for words in ("weights: 93.4 GB in bf16 KV cache: 131 kB per token, 134 MB per sequence of 1,024 tokens decoding, "
                  "batch size 1, 1,024 tokens of context: 7.65 ms per token at best, memory-bound; computed for NVIDIA "
                  "H100", "whose 80 GB cannot hold its weights and KV cache", "The MoE's weights take as much"):
        assert words in short, words
    text = " ".join(report.report(of_published("gpt-oss-20b"), detail=True).split())
    assert "KV cache: 24.6 kB per further token, 28.3 MB per sequence of 1,024 tokens" in text
    assert "attention to what each layer keeps of it" in text
    assert "published: active 0.2B, source: " in report.published_words(of_published("switch-base-8")["published"])
    # 8 of 256 on 8 devices: 7 elsewhere.  A device has none of the 8 with 224! 248! / (216! 256!) = 0.3386; 7 * 0.6614
    words = "each layer sends copies of a token to 7.00 experts, on 4.63 different devices: 11.6 MB in all layers"
    assert words in " ".join(report.report(of_published("deepseek-v3"), detail=True).split())


def test_what_is_said_only_where_it_is_so():
    turns, mixed = (sheet.sheet("", TINY, 1, MACHINE._replace(flops=300.0), "bf16", form) for form in (None, "mxfp4"))
    assert f"compute-bound from a batch of {turns['turning_batch']:,} sequences on" in report.decoding_table(turns)
    assert "bf16, experts in mxfp4" in report.report(mixed) and "bf16, experts" not in report.report(turns)
    assert "bf16, experts in mxfp4" in report.decoding_table(mixed).replace("\n", " ")
    for *seconds, again in ((3.0, 1.0, 1.0, 1.0, 2.0, True), (3.0, 1.5, 1.2, 1.05, 1.0, False),
                            (3.0, 1.0, 1.0, 1.0, 1.05, False)):
        words = report.saved_words(RECORD | {"dense_twin": RECORD["dense_twin"] | {"decode_seconds": seconds}})
        assert ("the dense model is compute-bound, and the MoE saves again" in " ".join(words.split())) == again


def test_what_was_counted_says_where_it_differs_and_what_was_lost(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"part": "dense", "forward": 10, "backward": 20, "formula": 30}
    counted = {"batch": 2, "sequence": 3, "groups": 1, "of": "random tokens", "tokens": 6, "training_flops": 60,
               "padding_flops": 15, "parts": [row, row | {"part": "head", "formula": 1031}], "layers": []}
    text = report.counted_table(counted)
    assert text.startswith("FLOPs of a training step of 2 x 3 random tokens, counted product by product\n")
    assert text.endswith("together 60, 10 per token")
    same, differs = text.splitlines()[3:5]
    assert same.split() == ["dense", "10", "20", "50.0%", "the", "same"]
    assert differs.split() == ["head", "10", "20", "50.0%", "1,031:", "DIFFERS"]
    layers = [{"layer": 0, "chosen": 8, "kept": 6, "run": 12}, {"layer": 2, "chosen": 8, "kept": 8, "run": 12}]
    text = report.counted_table(counted | {"groups": 2, "layers": layers})
    assert "2 x 3 random tokens, in 2 groups, counted" in text and "rows of the dense block in layer" in text
    assert text.splitlines()[-3].split() == ["2", "8", "8", "12"]
    assert " ".join(text.splitlines()[-2:]) == ("12.5% of the assignments had no room and were dropped; 25.0% of the "
                                                "FLOPs were spent on empty slots")


def test_the_tables_of_a_run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    held = {"parameters": 1, "gradients": 2, "moments": 3, "activations": 4, "activations_formula": 5, "peak": 6,
            "peak_formula": 7}
    rows = [line.rsplit(maxsplit=4) for line in report.step_table(held).splitlines()[5:]]
    assert [words for _, *words in rows] == [["4", "B", "5", "B"], ["6", "B", "7", "B"]]
    layer = {"layer": 3, "batch_sizes": [1, 4], "touched": [2.0, 3.5], "touched_if_even": [2.0, 4.5],
             "touched_at_random": [2.0, 4.4], "missed": 0.25, "missed_if_even": 0.5, "ranks": 4, "sent": 1500,
             "sent_if_even": 1000, "imbalance": 1.5, "seconds": 3.0, "seconds_if_even": 2.0}
    head, _, row, even, drawn, *notes = report.routing_table([layer]).splitlines()[1:]
    assert row.split() == ["3", "2.00", "3.50", "25%", "1.5", "kB", "1.50", "1.50"]
    assert even.split()[-7:] == ["2.00", "4.50", "50%", "1", "kB", "1.00", "1.00"] and drawn.endswith("2.00     4.40")
    assert all(note.split(":")[0] in head for note in notes) and len(notes) == 4  # each column is explained


def test_a_quantity_has_three_digits_and_a_prefix():
    for n, words in ((0, "0"), (7.25, "7.25"), (999.4, "999"), (999.6, "1 k"), (1000, "1 k"), (12_345, "12.3 k"),
                     (999_600, "1 M"), (46.7e9, "46.7 G"), (1e12, "1 T"), (999.6e12, "1 P"), (1e18, "1000 P"),
                     (7e20, "700000 P"), (1e21, "1e+21"), (-5000, "-5 k")):
        number, _, letter = words.partition(" ")
        assert (quantities.short(n), quantities.short(n, "B")) == (words, f"{number} {letter}B")
    assert [quantities.full(n) for n in (1234.5, 10**15 - 1, 10**15)] == ["1,234", "999,999,999,999,999", "1 P"]
