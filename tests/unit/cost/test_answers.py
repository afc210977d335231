"""The command `cost` as its user meets it: for published models, files, runs and models that are not trained."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from minimoe import batches, cli
from minimoe.config import preset
from minimoe.cost import answers, deployment, memory, published
from minimoe.moe import routers
from minimoe.training import checkpoint, corpus, data, loop

ARCH = dict(vocab=10, d_model=8, n_layers=1, n_heads=2, dense_ffn_hidden=16)
FILES = {
    "words.txt": "The cat sat on the mat, if x: the hat\n" * 30,
    "other.txt": "0123456789\n" * 90,
    "one.json": json.dumps({"name": "small", "arch": ARCH}),
    "two.json": json.dumps({"models": [{"name": "a", "arch": ARCH, "kept": 1}, {"name": "b", "arch": ARCH}]}),
    "broken.json": '{"models": [',
    "empty.json": "[]",
    "strange.json": json.dumps([{"name": "small", "arch": ARCH | {"n_heads": 3}}]),
}
RUNS = {"moe": dict(), "dense": dict(n_experts=1, top_k=1), "first": dict(first_dense_layers=2),
        "soft": dict(router="soft"), "limited": dict(capacity_factor=0.5, n_experts=6)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with FILES and a short finished run of each of RUNS, on words.txt."""
    folder = tmp_path_factory.mktemp("made")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    text = data.build(corpus.from_files([folder / "words.txt"]), sequence=32)
    for name, model_fields in RUNS.items():
        config, training = preset("tiny", dict(vocab_size=len(text.tokenizer)) | model_fields,
                                          dict(n_steps=1, eval_batches=2, batch=2))
        loop.train(loop.new_state(config, training, text), text, folder / name / "checkpoint.npz")
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capsys):
    """A function that runs `cost` in a copy of that folder: exit status, standard output, standard error."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def command(line):
        try:
            status = cli.main(["cost", *shlex.split(line)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def said(run):
    """A function that runs a command which must succeed, name no more than a picture on standard error, and change no
    file but PNGs.
    """

    def command(line):
        before = contents()
        status, out, err = run(line)
        drawn = "".join(f"Picture: {word}\n" for word in line.split() if word.endswith(".png"))
        assert (status, err) == (0, drawn)
        assert {path: read for path, read in contents().items() if path in before} == before
        assert {path.suffix for path in contents().keys() - before.keys()} <= {".png"}
        return out

    return command


@pytest.fixture
def record(said):
    """A function that runs a command with --json: what it says."""
    return lambda line: json.loads(said(f"{line} --json"), parse_constant=pytest.fail)


def contents():
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


IMPOSSIBLE = {
    "--model mixtral": ["mixtral", "did you mean 'mixtral-8x7b'", "gpt-2", "deepseek-v3"],
    "--model Llama-2": ["Llama-2", "did you mean 'llama-2-7b'"],
    "--model nothing-like-it": ["nothing-like-it", *published.models()],
    "--context 0": ["--context 0", "1 or more"],
    "--context 65": ["--context 65", "max_sequence = 64"],
    "--preset tiny --context 33": ["--context 33", "max_sequence = 32"],
    "--model gpt-2 --context 1025": ["--context 1025", "GPT-2", "1024"],
    "--run moe --text words.txt --context 33": ["--context 33", "max_sequence = 32"],
    **{f"--{name} {value}": [f"--{name} {shown}", "finite number above 0"] for name in ("bandwidth", "flops")
       for value, shown in (("0", "0"), ("-1", "-1"), ("nan", "nan"), ("inf", "inf"))},
    "--bandwidth fast": ["bandwidth", "fast", "float"],
    "--figure x.txt": ["x.txt", ".png"],
    "--list --context 2000 --figure x.png": ["--context 2000", "GPT-2", "1024"],
    "--ranks 2": ["--ranks", "no use without --run"],
    "--text words.txt": ["--text", "no use without --run"],
    "--text words.txt --list": ["--text", "no use without --run"],
    "--run moe --text words.txt --ranks 3": ["ranks = 3", "divide the 4 experts"],
    "--run moe --text words.txt --ranks 0": ["ranks = 0", "1 or more"],
    "--model ''": ["model = ''", "must be one of"],
    "--run limited --text words.txt --ranks 4": ["ranks = 4", "divide the 6 experts"],
    "--run moe": ["the text is not the one"],
    "--run moe --text other.txt": ["the text is not the one"],
    "--run moe --text missing.txt": ["missing.txt", "No such file"],
    "--run nowhere": ["no trained run in nowhere"],
    **{f"{option} --d-model 64": ["--d-model", f"no use beside {option.split()[0]}"]
       for option in ("--model gpt-2", "--file one.json", "--list", "--run moe")},
    "--model gpt-2 --batch 4": ["--batch", "no use beside --model"],
    **{f"{one} {other}": [one.split()[0], other.split()[0], "not allowed with"]
       for one, other in (("--model gpt-2", "--file one.json"), ("--list", "--model gpt-2"), ("--run moe", "--list"),
                          ("--file one.json", "--run moe"), ("--preset tiny", "--model gpt-2"),
                          ("--preset tiny", "--run moe"))},
    "--file missing.json": ["missing.json", "No such file"],
    "--file .": [".", "directory"],
    "--file broken.json": ["broken.json", "JSON"],
    "--file empty.json": ["empty.json", "at least one"],
    "--file strange.json": ["strange.json", "model 1", "small", "d_model = 8", "3"],
    **{f"{which} {option}{form}": [option.split()[0], "no use with several models", "for a picture: --figure"]
       for which in ("--list", "--file two.json") for form in ("", " --json")
       for option in ("--context 7", "--machine a100", "--bandwidth 1e12", "--flops 1e12", "--format int8",
                      "--expert-format int4")},
    "--file one.json --json --format int8": ["--format", "no use with the counts of --json", "--figure"],
    "--machine abacus": ["machine", "abacus", *deployment.MACHINES],
    "--format float64": ["format", "float64", *memory.FORMATS],
    "--expert-format int2": ["expert-format", "int2", *memory.FORMATS],
    "--preset huge": ["preset", "huge", "tiny"],
    "--top-k 9": ["top-k", "9", "n-experts = 8"],
    "--batch 7": ["groups", "2", "divide batch = 7"],
    "--sequence 65": ["sequence", "65", "max-sequence = 64"],
    "--learning-rate 1": ["learning-rate"],
}


@pytest.mark.parametrize("line", IMPOSSIBLE)
def test_an_impossible_option_is_refused_by_name_and_value(run, line):
    before = contents()
    status, out, err = run(line)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert contents() == before
    assert not [word for word in IMPOSSIBLE[line] if word.replace("_", "-") not in err.replace("_", "-")], err


@pytest.mark.parametrize("router", routers.ROUTERS)
def test_what_is_counted_is_the_same_as_by_formula_with_every_router(said, router):
    top_k = routers.ROUTERS[router].FACTS.top_k or 2
    lines = said(f"--preset tiny --batch 2 --router {router} --top-k {top_k}").splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("by formula") and line.startswith("part"))
    last = next(i for i, line in enumerate(lines) if line.startswith("together") and i > first)
    parts = [line for line in lines[first + 2:last]]
    assert len(parts) >= 4 and all(line.endswith("  the same") for line in parts)
    assert "DIFFERS" not in "\n".join(lines)


@pytest.mark.parametrize("fields", [
    "--capacity-factor 0.5 --pad-experts", "--first-dense-layers 2", "--n-shared-experts 1 --n-kv-heads 4",
    "--n-experts 1 --top-k 1", "--batch 4 --sequence 16 --groups 4"])
def test_a_model_that_is_not_trained_is_counted_with_its_fields(record, fields):
    found = record(f"--preset tiny {fields}")
    assert found["counted"]["parts"]
    for row in found["counted"]["parts"]:
        assert row["forward"] + row["backward"] == row["formula"]
    assert found["counted"]["training_flops"] == sum(row["formula"] for row in found["counted"]["parts"])
    assert found["step"]["peak"] > 0 and found["step"]["activations"] > 0


def test_a_model_of_the_usual_preset_by_hand(record):
    # embedding and head 65*128; 4 layers of 4*128*128, 8 experts of 3*128*256, a router of 128*8, two gains; a last one
    found = record("")
    layer = 4 * 128 * 128 + 8 * 3 * 128 * 256 + 128 * 8 + 2 * 128
    assert found["parameters"]["total"] == 2 * 65 * 128 + 4 * layer + 128 == 3_429_760
    assert found["context"] == 64 and found["memory"]["formats"] == ["float32", "float32"]
    assert found["machine"]["bandwidth"] == 2 * 8 * 5.6e9
    counted = found["counted"]
    assert (counted["batch"], counted["sequence"], counted["groups"], counted["tokens"]) == (12, 64, 2, 768)


LONG = "a-name-of-somebody/and-one-of-a-model-" * 9
WIDE = {"vocab": 10**12, "d_model": 10**12, "n_layers": 100, "n_heads": 10**12, "n_routed_experts": 10**12,
        "top_k": 10**11, "expert_hidden": 10**12, "n_shared_experts": 10**12}


@pytest.mark.parametrize("line", [
    "--router sigmoid_bias --n-shared-experts 1 --first-dense-layers 1", "--run moe --text words.txt",
    "--run dense --text words.txt", "--preset tiny --router soft", "--list", "--file long.json", "--file wide.json",
    "--file both.json", "--model deepseek-v3 --bandwidth 1e-9 --flops 1e-9",
    "--model gpt-2 --bandwidth 1e30 --flops 1e30",
    "--preset tiny --bandwidth 1e12 --flops 1.23456789e15 --expert-format mxfp4 --format mxfp8"])
def test_no_line_is_too_wide(said, line):
    models = {"long": [{"name": LONG, "arch": ARCH}], "wide": [{"name": "wide", "arch": WIDE}]}
    for name, listed in (models | {"both": models["long"] + models["wide"]}).items():
        Path(f"{name}.json").write_text(json.dumps(listed))
    assert max(map(len, said(line).splitlines())) <= 120


def test_a_long_name_of_a_table_goes_on_below(said):
    Path("long.json").write_text(json.dumps([{"name": LONG, "arch": ARCH}, {"name": "b", "arch": ARCH}]))
    rows = [row.split() for row in said("--file long.json").splitlines()[2:]]
    assert "".join(name for name, *_ in rows) == LONG + "b"
    numbers = ["824", "824", "744", "664", "1", "-"]
    assert [numbers for _, *numbers in rows if numbers] == [numbers] * 2 and rows[0][1:] == numbers


def test_the_numbers_that_are_told_stand_in_the_heading(said):
    text = " ".join(said("--model gpt-2 --bandwidth 1.5e12 --flops 7e14").split())
    assert "but bandwidth 1.5 TB/s and flops 700 TFLOP/s as told: texts of" in text


@pytest.mark.parametrize("line, width, idle", [
    ("--preset tiny --batch 2 --n-experts 1 --top-k 1", 32, True),
    ("--preset tiny --batch 2 --n-experts 1 --top-k 1 --n-shared-experts 1", 64, True),
    ("--preset tiny --batch 2 --n-experts 1 --top-k 1 --first-dense-layers 1", 32, True),
    ("--preset tiny --batch 2 --n-experts 1 --top-k 1 --capacity-factor 0.5 --pad-experts", 32, True),
    ("--preset tiny --batch 2 --n-experts 1 --top-k 1 --router hash", 32, False),  # it has no product
    ("--preset tiny --batch 2 --first-dense-layers 2", 64, False),
    ("--run dense --text words.txt", 32, True),
])
def test_a_dense_model_is_called_one_and_its_idle_router_is_counted(said, record, line, width, idle):
    found, text = record(line), said(line)
    rows = {row["part"]: row for row in found["parts"]}
    # two layers with three matrices of 32 x width; a router of 32 numbers in each that has one
    routed = (1 if "--first-dense-layers 1" in line else 2) * idle
    assert rows["dense"]["total"] == rows["dense"]["active"] == 2 * 3 * 32 * width
    assert rows.get("router", {"total": 0})["total"] == 32 * routed
    assert found["parameters"]["total"] == sum(row["total"] for row in found["parts"])
    assert found["forward_flops_per_token"] == sum(row["forward_flops_per_token"] for row in found["parts"])
    ran = {row["part"]: row for row in found["counted"]["parts"]}
    assert all(row["forward"] + row["backward"] == row["formula"] for row in ran.values())
    assert found["counted"]["training_flops"] == sum(row["formula"] for row in ran.values())
    share = 0.5 if "--capacity-factor" in line else 1
    assert ran["dense"]["forward"] == 2 * 64 * 2 * 3 * 32 * width * share
    assert ran.get("router", {"forward": 0})["forward"] == 2 * 64 * 32 * routed
    assert "router: with one dense block it has nothing to choose, but its product runs" in text or not idle
    assert ("router: with" in text) == idle
    preset = "" if line.startswith("--run") else " (from the preset tiny)"
    assert text.startswith(f"a dense model{preset}\n") and not re.search(r"expert|\bmoe\b", text, re.IGNORECASE)
    assert all(row["distinct_experts"] == 0 for row in found["decode"]) and set(found["offload_half"]) == {0}
    assert all("dense" in read and "experts" not in read for read in found["bytes_read"].values())


def test_a_dense_block_has_no_format_of_experts(record):
    found = record("--preset tiny --n-experts 1 --top-k 1 --expert-format int4")["memory"]
    assert found["formats"] == ["float32"] * 2 and found["weights_as_said"] == found["weights"]["float32"]


def test_one_expert_of_soft_slots_is_no_dense_block(said, record):
    line = "--preset tiny --router soft --n-experts 1 --top-k 1"
    assert "experts" in {row["part"] for row in record(line)["parts"]}
    assert said(line).startswith("a MoE, 1 of 1 (from the preset tiny)\n")


def test_a_file_of_one_expert_is_dense_in_the_table(said):
    arch = {name: n for name, n in ARCH.items() if name != "dense_ffn_hidden"}
    arch |= dict(n_routed_experts=1, top_k=1, expert_hidden=16)
    Path("one-expert.json").write_text(json.dumps([{"name": "a", "arch": arch}, {"name": "b", "arch": ARCH}]))
    first, second = (line.split() for line in said("--file one-expert.json").splitlines()[2:])
    assert first[1] == "832" and second[1] == "824" and first[-1] == second[-1] == "-"  # a router of 8


def test_a_published_model_has_its_usual_machine_format_and_context(record):
    found = record("--model mixtral-8x7b")
    assert (found["context"], found["memory"]["formats"]) == (2048, ["bf16", "bf16"])
    assert found["machine"]["bandwidth"] == 3.35e12
    assert found["parameters"]["total"] == 46_702_792_704
    assert found["published"]["total"] == "46.7B (paper 47B)" and "2401.04088" in found["published"]["source"]
    assert found["published"]["here"] == 12_879_925_248
    assert record("--model gpt-2")["context"] == 1024 and record("--model makemoe")["context"] == 32


def test_machine_format_and_context_are_as_told(record):
    found = record("--model olmoe-1b-7b --context 9 --machine a100 --bandwidth 1e12 --format int8 "
                   "--expert-format mxfp4")
    assert found["context"] == 9 and found["memory"]["formats"] == ["int8", "mxfp4"]
    assert (found["machine"]["bandwidth"], found["machine"]["flops"]) == (1e12, 312e12)
    assert found["machine"]["words"].endswith(", but bandwidth 1 TB/s as told")
    both = record("--preset tiny --flops 5e9 --bandwidth 2e9 --context 3")["machine"]
    assert (both["flops"], both["bandwidth"]) == (5e9, 2e9) and both["words"].endswith(
        "but bandwidth 2 GB/s and flops 5 GFLOP/s as told")


@pytest.mark.parametrize("key", published.models())
def test_every_published_model_has_its_page(said, key):
    text = said(f"--model {key}")
    assert text.startswith(published.find(key).name)
    assert f"{json_of(key)['total']:,}" in text and "\npublished: " in text


def json_of(key):
    return published.counts(published.find(key))


COUNTS = ["name", "total", "active_incl_all_embeddings", "active_excl_input_embedding", "active_non_embedding"]


@pytest.mark.parametrize("options", ["", "--figure drawn.png", "--context 7 --figure drawn.png",
                                     "--machine a100 --format int8 --figure drawn.png"])
def test_a_file_as_json_is_a_list_of_counts_and_nothing_else(record, options):
    # embedding and head 80 each, attention 4*64, feed-forward 3*8*16, three gains of 8
    total = 2 * 80 + 256 + 384 + 24
    numbers = dict(zip(COUNTS[1:], (total, total, total - 80, total - 160), strict=True))
    found = record(f"--file two.json {options}")
    assert found == [{"name": "a"} | numbers, {"name": "b"} | numbers]
    assert [list(counts) for counts in found] == [COUNTS] * 2


def test_a_file_as_a_table_has_its_names_and_numbers(said):
    [head, line, *rows] = said("--file two.json").splitlines()
    assert " ".join(head.split()) == (
        "name parameters active without input embedding without embeddings layers experts")
    assert set(line) == {"-"}
    assert [row.split() for row in rows] == [[name, "824", "824", "744", "664", "1", "-"] for name in "ab"]


def test_a_file_of_one_model_has_its_page(said):
    text = said("--file one.json --context 100")
    assert text.startswith("small\n") and "824" in text and "texts of 100 tokens" in text
    assert "What is saved" not in text  # it is dense


def test_the_list_has_every_key_and_what_each_counts(said, record):
    rows = {line.split()[0]: line for line in said("--list").splitlines()[2:]}
    assert list(rows) == list(published.models())
    assert rows["deepseek-v3"].endswith("8 of 256 + 1") and "671,026,404,352" in rows["deepseek-v3"]
    assert record("--list") == [json_of(key) for key in published.models()]


@pytest.mark.parametrize("line", ["--preset tiny", "--model gpt-2", "--file two.json",
                                  "--run soft --text words.txt"])
def test_a_figure_is_a_png_and_nothing_half_written(said, line):
    before = {path for path in Path().rglob("*")}
    text = said(f"{line} --figure new/shares.png")
    assert {path for path in Path().rglob("*")} - before == {Path("new"), Path("new/shares.png")}
    assert Path("new/shares.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert text == said(line)


def test_a_figure_that_cannot_be_written_is_refused_without_an_answer(run):
    status, out, err = run("--model gpt-2 --figure words.txt/shares.png")
    assert (status, out) == (2, "") and "words.txt/shares.png" in err and len(err.splitlines()) == 1


def test_a_run_has_the_costs_of_its_own_routing(record, said):
    found = record("--run moe --text words.txt")
    assert [row["layer"] for row in found["routing"]] == [0, 1]
    for row in found["routing"]:
        # half of four experts is room for both of a token: what is not there of two choices is at most both
        assert 0 < row["missed"] <= 1 and row["ranks"] == 4
        assert row["touched"][0] == 2 and row["touched_if_even"][0] == 2
        assert 1 <= row["imbalance"] <= 4 and row["seconds"] >= row["seconds_if_even"] > 0
    assert "the run's own routing of held-out text" in said("--run moe --text words.txt")
    assert {row["ranks"] for row in record("--run moe --text words.txt --ranks 2")["routing"]} == {2}
    assert {row["ranks"] for row in record("--run limited --text words.txt")["routing"]} == {2}  # of 6 experts


@pytest.mark.parametrize("router", ["soft", "expert_choice"])
def test_a_model_that_cannot_write_has_no_costs_of_decoding(record, said, router):
    found = record(f"--preset tiny --router {router}")
    assert (found["decode"], found["bytes_read"], found["offload_half"]) == ([], {}, [])
    assert found["dense_twin"]["decode_seconds"] == []
    text = said(f"--preset tiny --router {router} --figure shares.png")
    assert "cannot write text token by token" in text and "A step of decoding" not in text


def test_a_file_of_one_model_is_answered_in_full_but_as_json_in_its_counts(said, run):
    assert "What is saved" in said("--model mixtral-8x7b")
    Path("alone.json").write_text(json.dumps({"name": "alone", "arch": {
        "vocab": 5, "d_model": 4, "n_layers": 1, "n_heads": 1, "dense_ffn_hidden": 3}}))
    assert "decoding on" in said("--file alone.json")
    _, out, _ = run("--file alone.json --json")
    assert [row["name"] for row in json.loads(out)] == ["alone"]


@pytest.mark.parametrize("name", ["dense", "first", "soft"])
def test_a_run_that_routes_nothing_has_no_costs_of_routing(record, said, name):
    assert "routing" not in record(f"--run {name} --text words.txt")
    text = said(f"--run {name} --text words.txt")
    assert "own routing" not in text and "the same" in text


def test_a_run_with_capacity_says_what_it_drops(said, record):
    rows = record("--run limited --text words.txt --ranks 3")["counted"]["layers"]
    assert all(row["kept"] == row["run"] < row["chosen"] for row in rows)
    chosen, kept = (sum(row[name] for row in rows) for name in ("chosen", "kept"))
    assert f"{1 - kept / chosen:.1%} of the assignments" in said("--run limited --text words.txt --ranks 3")


def test_a_run_that_is_not_finished_is_noted_beside_the_answer(run):
    text = data.build(corpus.from_files(["words.txt"]), sequence=32)
    config, training = preset("tiny", dict(vocab_size=len(text.tokenizer)), dict(n_steps=5, eval_batches=1))
    checkpoint.save(Path("half/checkpoint.npz"), loop.new_state(config, training, text))
    status, out, err = run("--run half --text words.txt --json")
    assert status == 0 and json.loads(out)["routing"]
    assert "half is at step 0 of 5" in err


def test_of_very_many_texts_each_is_looked_at(record):
    names_of_texts = [f"text{i}.txt" for i in range(65)]
    for i, name in enumerate(names_of_texts):
        Path(name).write_text(FILES["words.txt"][i:])
    text = data.build(corpus.from_files(names_of_texts), sequence=32)
    config, training = preset("tiny", dict(vocab_size=len(text.tokenizer)), dict(n_steps=1, eval_batches=1))
    loop.train(loop.new_state(config, training, text), text, Path("many/checkpoint.npz"))
    assert len(record(f"--run many --text {' '.join(names_of_texts)}")["routing"]) == 2


def test_what_is_counted_of_a_run_is_its_own_work_on_its_own_text(record, said):
    """Rows as a plain run of the trained parameters gives them, on the batch that is drawn."""
    state = checkpoint.load("limited/checkpoint.npz")
    config, training = state.model_config, state.train_config
    text = data.build(corpus.from_files(["words.txt"]), training.sequence)
    batch = data.sample(text.train, np.random.default_rng(0), training.batch, training.sequence)
    cut = batches.cut(batch.tokens_BS, batch.targets_BS, training.groups)
    routings = batches.gradients(state.params, cut, config, np.random.default_rng(0)).routings
    kept = [sum(int(of_group[layer].kept_A.sum()) for of_group in routings) for layer in range(config.n_layers)]
    rows = record("--run limited --text words.txt")["counted"]["layers"]
    assert [row["kept"] for row in rows] == kept
    assert "tokens of its text, as trained" in said("--run limited --text words.txt")


def test_the_routing_of_a_run_is_read_from_all_domains_alike(made):
    streams = np.arange(100), np.arange(100, 300)
    text = data.Corpus(None, ("a", "b"), streams, streams)
    found = answers._held_out(text, 10)
    assert found.tolist() == np.arange(200).reshape(20, 10).tolist()


def test_bytes_that_even_routing_would_send_by_hand(record):
    # 4 experts on 4 devices, 2 a token: 1.5 of 2 vectors leave; tiny is 32 wide, in float32, 4 texts of 32 tokens
    rows = record("--run moe --text words.txt")["routing"]
    n_tokens = 32 * (len(FILES["words.txt"]) // 10 // 32)
    assert {row["sent_if_even"] for row in rows} == {4 * 32 * 1.5 * n_tokens}
    assert {row["missed_if_even"] for row in rows} == {0.5}
