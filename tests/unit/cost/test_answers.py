"""The command `cost` as users see it: for published models, files, runs and untrained models."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimoe import cli, cost
from minimoe import config as configs
from minimoe.cost import answers, measured, published
from minimoe.training import checkpoint, corpus, data, loop
from tests import small

ARCH = dict(vocab=10, d_model=8, n_layers=1, n_heads=2, dense_ffn_hidden=16)
FILES = {
    "words.txt": "The cat sat on the mat, if x: the hat\n" * 30, "other.txt": "0123456789\n" * 90,
    "one.json": json.dumps({"name": "small", "arch": ARCH}),
    "two.json": json.dumps({"models": [{"name": "a", "arch": ARCH, "kept": 1}, {"name": "b", "arch": ARCH}]}),
    "strange.json": json.dumps([{"name": "small", "arch": ARCH | {"n_heads": 3}}])}
RUNS = {"moe": dict(), "dense": dict(n_experts=1, top_k=1), "soft": dict(router="soft"),
        "limited": dict(capacity_factor=0.5, n_experts=6)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with FILES and a short finished run of each of RUNS, on words.txt."""
    folder = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (folder / name).write_text(content, "utf-8")
    text = data.build(corpus.from_files([folder / "words.txt"]), sequence=32)
    for name, model_fields in RUNS.items():
        config, training = configs.preset("tiny", dict(vocab_size=len(text.tokenizer)) | model_fields,
                                          dict(n_steps=1, eval_batches=2, batch=2))
        loop.train(loop.new_state(config, training, text), text, folder / name / "checkpoint.npz")
    return folder


@pytest.fixture
def run(made, monkeypatch, capsys):
    """A function that runs `cost` in that folder without changing it: status, output, errors."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("COLUMNS", "80")
    small.coarse(monkeypatch)

    def command(line):
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        try:
            status = cli.main(["cost", *shlex.split(line)])
        except SystemExit as stop:
            status = stop.code
        assert all(path.read_bytes() == content or path.suffix == ".png" for path, content in before.items())
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def answer(run):
    """A function that runs a command which must succeed: what it prints, no line wider than the terminal."""

    def command(line):
        status, out, err = run(line)
        assert (status, err) == (0, "".join(f"Picture: {word}\n" for word in line.split() if word.endswith(".png")))
        assert max(map(len, out.splitlines())) <= 80 or "--json" in line
        return out

    return command


@pytest.fixture
def record(answer):
    """A function that runs a command with --json and returns the record."""
    return lambda line: json.loads(answer(f"{line} --json"), parse_constant=pytest.fail)


@pytest.mark.parametrize("line, words", [
    ("--model mixtral", ["mixtral", "did you mean 'mixtral-8x7b'", "--list"]),
    ("--context 0", ["--context 0", "1 or more"]), ("--context 65", ["--context 65", "max_sequence = 64"]),
    ("--model gpt-2 --context 1025", ["--context 1025", "GPT-2", "1024"]),
    ("--bandwidth 0", ["--bandwidth 0", "finite number above 0"]), ("--flops inf", ["--flops inf", "finite number"]),
    ("--ranks 2", ["--ranks", "no effect without --run"]), ("--list --batch 4", ["--batch", "no effect with --list"]),
    ("--run limited --text words.txt --ranks 4", ["ranks = 4", "divide the 6 experts"]),
    ("--run moe --text other.txt", ["the text is not the one"]), ("--file strange.json", ["strange.json", "d_model"]),
    ("--list --format int8", ["--format", "no effect on several models", "for a picture: --figure"]),
    ("--file one.json --json --machine a100", ["--machine", "no effect on the counts of --json", "--figure"]),
])
def test_an_impossible_option_is_refused_by_name_and_value(run, line, words):
    status, out, err = run(line)
    err = " ".join(err.split())
    assert (status, out) == (2, "")
    assert not [word for word in words if word.replace("_", "-") not in err.replace("_", "-")], err


def test_a_model_of_the_usual_preset_by_hand(record):
    # embedding and head 65*128; 4 layers of 4*128*128, 8 experts of 3*128*256, a router of 128*8, two gains; a last one
    found = record("")
    total = 2 * 65 * 128 + 4 * (4 * 128 * 128 + 8 * 3 * 128 * 256 + 128 * 8 + 2 * 128) + 128
    assert found["parameters"]["total"] == total == 3_429_760
    assert (found["context"], found["memory"]["formats"], found["machine"]["memory"]) == (64, ["float32"] * 2, 64e9)
    counted, step = found["counted"], found["step"]
    assert (counted["batch"], counted["sequence"], counted["groups"], counted["tokens"]) == (12, 64, 2, 768)
    assert all(row["forward"] + row["backward"] == row["formula"] for row in counted["parts"])
    assert counted["training_flops"] == sum(row["formula"] for row in counted["parts"])
    assert 3 * 768 * found["forward_flops_per_token"] == counted["training_flops"]  # with masked scores, which run here
    assert (step["parameters"], step["gradients"], step["moments"]) == (4 * total, 4 * total, 8 * total)
    for name in ("activations", "peak"):  # of one group of 6 sequences, and of both
        assert step[f"{name}_formula"] == pytest.approx(step[name], rel=0.05)


@pytest.mark.parametrize("line, width, routed, share", [
    ("--preset tiny --n-experts 1 --top-k 1 --n-shared-experts 1 --capacity-factor 0.5 --batch 2", 64, 2, 0.75),
    ("--preset tiny --n-experts 1 --top-k 1 --router hash --expert-format int4 --batch 2", 32, 0, 1),  # no product
    ("--run dense --text words.txt", 32, 2, 1)])
def test_a_dense_model_is_called_one_and_its_idle_router_is_counted(answer, record, line, width, routed, share):
    found, text = record(line), answer(f"{line} --detail")
    rows, ran = ({row["part"]: row for row in listed} for listed in (found["parts"], found["counted"]["parts"]))
    # two layers with three matrices of 32 x width; a router of 32 numbers in each that has one; 64 tokens
    assert rows["dense"]["total"] == rows["dense"]["active"] == 2 * 3 * 32 * width
    assert ran["dense"]["forward"] == 2 * 64 * 2 * 3 * 32 * width * share
    assert rows.get("router", {"total": 0})["total"] == 32 * routed
    assert ran.get("router", {"forward": 0})["forward"] == 2 * 64 * 32 * routed
    assert ("router: with one dense block it has nothing to choose" in text) == (routed > 0)
    assert text.startswith("a dense model") and not re.search(r"expert|\bmoe\b", text, re.IGNORECASE)
    assert {row["distinct_experts"] for row in found["decode"]} == set(found["offload_half"]) == {0}
    assert found["memory"]["formats"] == ["float32"] * 2 and "routing" not in found


def test_a_model_has_its_usual_machine_format_and_context_unless_given(record, answer):
    found = record("--model mixtral-8x7b")
    assert (found["context"], found["memory"]["formats"]) == (2048, ["bf16", "bf16"])
    assert found["machine"]["bandwidth"] == 3.35e12 and found["published"]["total"] == "46.7B (paper 47B)"
    # 2 * (12,879,925,248 - 131,072,000 - 266,240) + 4 * 32 * 4096 * 2048 = 26.6 G, all pairs of tokens counted
    assert "kernel computes; with the masked ones 26.6 G" in " ".join(answer("--model mixtral-8x7b --detail").split())
    assert record("--model gpt-2 --bandwidth 0.5")["context"] == 1024
    assert record("--model gpt-2 --context 100")["context"] == 100
    text = answer("--preset tiny --pad-experts --capacity-factor 0.5 --bandwidth 1.5e12 --flops 7e14 --detail")
    assert text.startswith("an MoE, 2 of 4 (from the preset tiny)\n") and "DIFFERS" not in text
    assert "but bandwidth 1.5 TB/s and flops 700 TFLOP/s as given: sequences of 32" in " ".join(text.split())


def test_a_file_is_a_page_a_table_or_a_list_of_counts(answer, record, monkeypatch):
    # embedding and head 80 each, attention 4*64, feed-forward 3*8*16, three gains of 8
    counts = {"total": 824, "active_incl_all_embeddings": 824, "active_excl_input_embedding": 744,
              "active_non_embedding": 664}
    expected = [{"name": "a"} | counts, {"name": "b"} | counts]
    assert record("--file two.json") == record("--file two.json --machine a100 --figure new/x.png") == expected
    assert Path("new/x.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert record("--file one.json") == [{"name": "small"} | counts]
    assert answer("--file one.json --context 100").startswith("small\n")
    rows = answer("--file two.json").split("\n\n")[0].splitlines()[3:]
    assert [row.split() for row in rows] == [[name, "824", "824", "744", "664", "1", "-"] for name in "ab"]
    assert record("--list") == [published.counts(model) for model in published.models().values()]
    rows = answer("--list").split("\n\n")[0].splitlines()[3:]
    assert [row.split()[0] for row in rows] == list(published.models()) and rows[8].endswith("8 of 256 + 1")
    assert rows[3].split()[1:5] == ["46.7", "G", "12.9", "G"] and "46,702,792,704" in answer("--list --detail")


def test_a_picture_that_fails_does_not_take_the_answer_along_and_names_are_no_formulas(run, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"name": "A $x_{$ B", "arch": ARCH}), "utf-8")
    status, out, _ = run(f"--file {path} --figure odd.png")
    assert status == 0 and out.startswith("A $x_{$ B\n")
    assert run(f"--file {path} --figure one.json/odd.png")[:2] == (2, out)


def test_a_config_file_is_a_page_of_its_own(answer, run, tmp_path):
    keys = dict(model_type="mistral", vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, intermediate_size=16, sliding_window=100, _name_or_path="house/small")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(keys), "utf-8")
    text = " ".join(answer(f"--file {path} --context 300").split())  # 100 tokens of 32 bytes
    assert text.startswith("house/small 10 tokens in the vocabulary, width 8, 2 heads, attention to the last 100 to")
    assert "KV cache: 0 B per further token, 3.2 kB per sequence of 300 tokens" in text
    path.write_text(json.dumps(keys | {"quantization_config": {"quant_method": "gptq"}}), "utf-8")
    status, out, err = run(f"--file {path} --context 300")
    assert (status, " ".join(out.split())) == (0, text) and "quantization_config (gptq) is not read" in " ".join(
        err.split())


def test_a_model_that_cannot_generate_has_no_costs_of_decoding(answer, record):
    found = record("--preset tiny --router expert_choice")
    assert (found["decode"], found["bytes_read"], found["offload_half"]) == ([], {}, [])
    text = " ".join(answer("--run soft --text words.txt --figure x.png").split())
    assert "cannot generate token by token" in text and "A decoding step" not in text and "own routing" not in text


def test_a_run_has_the_costs_of_its_own_routing(record, answer):
    found = record("--run moe --text words.txt")["routing"]
    n_tokens = 32 * (len(FILES["words.txt"]) // 10 // 32)
    assert [row["layer"] for row in found] == [0, 1]
    for row in found:
        assert 0 < row["missed"] <= 1 and row["missed_if_even"] == 0.5
        assert row["batch_sizes"] == [1] and row["touched"] == row["touched_if_even"] == row["touched_at_random"] == [2]
        assert 1 <= row["imbalance"] <= 4 and row["seconds"] >= row["seconds_if_even"] > 0
        # 4 experts on 4 devices, 2 a token: 1.5 of 2 vectors leave; tiny is 32 wide, in float32
        assert (row["ranks"], row["sent_if_even"]) == (4, 4 * 32 * 1.5 * n_tokens)
    assert "how the run routes held-out text" in answer("--run moe --text words.txt --detail")


def test_what_is_counted_of_a_run_is_its_own_work_on_its_own_text(record):
    found = record("--run limited --text words.txt")
    state = checkpoint.load("limited/checkpoint.npz")
    text = data.build(corpus.from_files(["words.txt"]), 32)
    tokens_BS = data.sample(text.train, np.random.default_rng(0), 2, 32).tokens_BS
    ran = cost.count_run(state.params, tokens_BS, state.model_config, groups=2)
    assert found["counted"]["layers"] == [{"layer": i, **rows._asdict()} for i, rows in ran.rows.items()]
    assert {row["ranks"] for row in found["routing"]} == {2}  # of 6 experts


def test_a_step_of_a_run_whose_warm_up_is_longer_than_it_is_measured_as_others():
    config, training = configs.preset("tiny", dict(n_layers=1, vocab_size=7), dict(n_steps=1, batch=2, groups=1))
    assert measured.held_in_step(config, replace(training, warmup_steps=9)).keys() >= {"peak", "activations"}


def test_the_routing_of_a_run_is_read_from_all_domains_alike():
    streams = np.arange(100), np.arange(100, 300)
    found = answers._held_out(data.Corpus(None, ("a", "b"), streams, streams), 10)
    assert found.tolist() == np.arange(200).reshape(20, 10).tolist()
    many = [np.arange(1000)] * 65  # 64 sequences in all are enough; of very many domains each has one
    assert [len(answers._held_out(data.Corpus(None, "a" * n, many[:n], many[:n]), 10)) for n in (3, 65)] == [63, 65]
