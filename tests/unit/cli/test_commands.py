"""Each other command once, for its promise."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minimoe import cli, gradcheck, model, terminal
from minimoe.analysis import causality, doctor
from minimoe.course import lessons
from minimoe.experiments import archive, compare, diagrams, routers, sparsity, studies, tour
from minimoe.generation import sampling
from minimoe.plots import cost_shares
from minimoe.training import checkpoint


@pytest.fixture
def loaded(run):
    return checkpoint.load("runs/done/checkpoint.npz")


def routed(state, text, **fields):
    config = replace(state.model_config, **fields)
    return model.forward(state.params, state.tokenizer.encode(text)[None], config)[1]


def one_line(message):
    return " ".join(message.split())


def test_without_a_run_of_the_tour_the_model_that_ships_is_used_and_named(run, refused, tmp_path, monkeypatch):
    """A folder of results that has one, then one that has none, then the tour's own run."""
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "shipped")
    assert "no trained run in runs/tour/moe/seed0" in refused("generate")
    shutil.copytree("runs/done", "shipped/moe")
    for command in ("generate --n-tokens 3", "route cat", "doctor", "explore --text cat"):
        status, out, err = run(command)
        assert status == 0 and one_line(err).startswith("minimoe: note: this is the model that ships, shipped/moe,")
        assert max(map(len, err.splitlines())) <= 80
    assert Path("runs/explorer.html").exists() and not Path("shipped/moe/explorer.html").exists()
    shutil.copytree("runs/done", "runs/tour/moe/seed0")
    assert run("generate --n-tokens 3") == run("generate --n-tokens 3 --run runs/done") and run("doctor")[2] == ""


def test_generate_writes_the_prompt_and_what_the_library_samples(run, loaded):
    """A prompt that is longer than the context, or that of old."""
    prompt_S = loaded.tokenizer.encode("the cat " * 6)
    for options, same in (("--seed 3", dict(temperature=0.8, seed=3)), ("--temperature 0", dict(temperature=0)),
                          ("--temperature 2 --likeliest 5 --top-p 0.9", dict(temperature=2.0, top_k=5, top_p=0.9))):
        status, out, _ = run(f"generate --run runs/done --prompt '{'the cat ' * 6}' --n-tokens 40 {options}")
        tokens_S = sampling.generate(loaded.params, loaded.model_config, prompt_S, 40, **same)
        assert (status, out) == (0, loaded.tokenizer.decode(tokens_S) + "\n")
    assert run("generate --run runs/done --n-tokens 0")[1] == "The \n"


def test_only_a_terminal_gets_generated_text_as_wide_as_it_is(run, monkeypatch):
    """Elsewhere it is as the model wrote it, so that it can be piped and compared."""
    line = f"generate --run runs/done --n-tokens 30 --prompt '  {'the cat ' * 20}'"
    plain = run(line)[1]
    monkeypatch.setattr(terminal, "is_shown", lambda: True)
    shown = run(line)[1]
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, plain.splitlines()))
    assert shown.split() == plain.split() and shown.startswith("  the cat the")


def test_a_console_that_cannot_show_a_text_or_would_obey_it_ends_no_command(run, monkeypatch):
    Path("ж.txt").write_text("Жил-был\x1b[31m пёс\n" * 90, "utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    for line in ("train --preset tiny --n-steps 1 --eval-batches 1 --text ж.txt --run ж", "route --run ж 'пёс\x1b'",
                 "generate --run ж --n-tokens 9 --prompt 'пёс\x1b'"):
        assert run(line)[0] == 0
    shown = sys.stdout.buffer.getvalue().decode("cp1252")
    assert shown.count("\\u043f\\u0451\\u0441") >= 3 and shown.count("\\x1b") >= 2 and "\x1b" not in shown


def test_another_number_of_experts_than_in_training_is_used_and_said(run, loaded):
    """The run has two of four."""
    note = "minimoe: note: {} per token; the model was trained with 2{}"
    prompt_S = loaded.tokenizer.encode("the cat")
    for top_k, words, smaller in ((1, "1 expert", "; the gates no longer sum to 1, so outputs are smaller too"),
                                  (3, "3 experts", "")):
        config = replace(loaded.model_config, top_k=top_k)
        tokens_S = sampling.generate(loaded.params, config, prompt_S, 9, temperature=0)
        line = f"generate --run runs/done --prompt 'the cat' --n-tokens 9 --temperature 0 --top-k {top_k}"
        status, out, err = run(line)
        assert (status, out) == (0, loaded.tokenizer.decode(tokens_S) + "\n")
        assert one_line(err) == note.format(words, smaller)
        status, out, err = run(f"route --run runs/done 'the cat' --top-k {top_k} --detail")
        assert (status, one_line(err)) == (0, note.format(words, smaller))
        assert out.count(": 0.") + out.count(": 1.") == 7 * top_k * len(loaded.model_config.moe_layers)
    assert run("route --run runs/done 'the cat' --top-k 2") == run("route --run runs/done 'the cat'")


@pytest.mark.parametrize(("options", "top_k", "words"), [
    ("--router switch --top-k 1", 2, "top_k = 2: router 'switch' always uses 1"),
    ("--router soft", 1, "top_k = 1: router 'soft' has learned slots for 2"),
    ("--first-dense-layers 2", 1, "top_k = 1: every layer is dense"),
    ("--n-experts 4", 5, "top_k = 5: a token cannot have more experts than there are: n_experts = 4"),
    ("--n-experts 4", 0, "top_k = 0: must be a whole number, 1 or more"),
    ("--renormalize", 1, "renormalize = True: with top_k = 1")])
def test_a_number_of_experts_that_the_model_cannot_have_is_refused(run, untrained, options, top_k, words):
    untrained(f"{options} --run it")
    for command in ("generate", "route abc"):
        status, out, err = run(f"{command} --run it --top-k {top_k}")
        assert (status, out) == (2, "") and words in one_line(err)


@pytest.mark.parametrize("line", ["rosetta", "--help"])
def test_output_that_cannot_be_written_is_one_line(run, monkeypatch, line):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert run(line)[::2] == (2, "minimoe: error: standard output: No space left on device\n")


def test_a_model_that_cannot_generate_says_why(run, untrained):
    for options, words in (("--eval-capacity-factor 1.5", "eval_capacity_factor = 1.5"), ("--router soft", "'soft'")):
        untrained(f"{options} --run {options.split()[1]}")
        status, out, err = run(f"generate --run {options.split()[1]}")
        assert (status, out) == (2, "") and words in err
    assert run("generate --run 1.5 --dropless --n-tokens 3")[0] == 0


def test_route_keeps_the_limit_that_the_run_is_evaluated_with_unless_another_is_given(run, untrained):
    untrained("--eval-capacity-factor 0.1 --run tight")
    assert "DROPPED" in run("route --run tight abcdefgh")[1]
    assert "DROPPED" not in run("route --run tight abcdefgh --capacity-factor 9")[1]
    assert run("route --run tight abcdefgh --capacity-factor 9")[1].count("kept (place") > 8


def test_route_prints_the_first_expert_of_each_character_and_every_assignment(run, loaded):
    status, out, _ = run("route --run runs/done 'the cat' --detail")
    lines = out.splitlines()
    assert status == 0 and max(map(len, lines)) <= 80
    for layer, routing in enumerate(routed(loaded, "the cat")):
        expert_TK = routing.expert_A.reshape(-1, 2)
        place = lines.index(f"layer {layer}, first choice of each character:")
        assert lines[place + 1:place + 3] == ["the cat", "".join(map(str, expert_TK[:, 0]))]
        for token, (experts, gates) in enumerate(zip(expert_TK, routing.gate_A.reshape(-1, 2), strict=True)):
            assert f"{layer:5}  {token:5}  {'the cat'[token]!r}  " + "   ".join(
                f"{e}: {g:.2f}" for e, g in zip(experts, gates, strict=True)) in lines
    assert "\x1b[" not in out and "\x1b[" in run("route --run runs/done cat --color always")[1]
    assert run(f"route --run runs/done {'t' * 32}")[0] == 0  # the longest that fits the context
    rows = [line for line in lines if re.match(r" +1 +\d", line)]
    _, short, _ = run("route --run runs/done 'the cat'")
    assert len(re.findall(r"\d: \d\.\d", short)) == 14
    assert short.splitlines()[:-2] == out.splitlines()[:len(short.splitlines()) - 2]
    assert "remaining layers: --detail" in short and "--detail" not in out
    _, out, _ = run("route --run runs/done 'the cat' --layer 1")
    assert [line for line in out.splitlines() if re.match(r" +\d +\d", line)] == rows and "layer 0" not in out


def test_route_shows_which_assignments_are_dropped_when_the_experts_are_limited(run, loaded):
    """7 tokens, K = 2, E = 4, factor 0.5: ceil(0.5 * 14 / 4) = 2 slots per expert, 8 in all: at least 6 of 14 drop."""
    kept = {}
    for order in ("position", "rank"):
        _, out, _ = run(f"route --run runs/done 'the cat' --layer 0 --capacity-factor 0.5 --drop-order {order}")
        kept[order] = out
        routing = routed(loaded, "the cat", eval_capacity_factor=0.5, drop_order=order)[0]
        assert out.count("DROPPED") == (~routing.kept_A).sum() >= 6
        assert out.count("kept (place ") == routing.kept_A.sum() and "place 3, room for 2" in out
    assert kept["position"] != kept["rank"]


def test_layers_are_shown_by_their_number_in_the_model(run, untrained):
    untrained("--first-dense-layers 1")
    _, out, _ = run("route --run new aceg")
    assert re.findall(r"^layer (\d),", out, re.MULTILINE) == ["1"] == sorted(
        {line.split()[0] for line in out.splitlines() if re.search(r"\d: \d\.", line)})
    assert "with a router are 1" in run("route --run new aceg --layer 0")[2]


def test_a_model_that_assigns_nothing_has_nothing_to_show(run, untrained):
    untrained("--router soft")
    for command, words in (("route --run new aceg", "there is nothing to show"), ("explore new", "nothing to explore")):
        status, out, err = run(command)
        assert (status, out) == (2, "") and "new has no layer that assigns tokens to experts" in one_line(err)
        assert words in one_line(err)
    assert "Nothing to examine" in run("doctor new")[1]


def test_explore_writes_one_page_where_it_is_asked_to(run):
    status, out, _ = run("explore runs/done")
    path = Path("runs/done/explorer.html")
    assert status == 0 and f"{path.stat().st_size:,} bytes" in out and out.endswith(f"\n{path.resolve().as_uri()}\n")
    assert run("explore runs/done --text cat 'the hat' --output new/page.html")[0] == 0
    page = Path("new/page.html").read_text("utf-8")
    assert all(json.dumps(list(text), separators=(",", ":")) in page for text in ("cat", "the hat"))


def test_what_is_measured_is_printed_with_the_answer_first(run, loaded, monkeypatch):
    for detail in (False, True):
        assert run(f"doctor runs/done {'--detail' * detail}") == (0, doctor.report(loaded, detail) + "\n", "")
    study = causality.study
    monkeypatch.setattr(causality, "study", lambda trials, rounds: study(trials, names=("softmax_topk",),
                                                                         rounds=rounds))
    assert run("causality --trials 2")[2] == "causality: 5 of 5 settings\n"
    for line, answer in (("causality --trials 2", "Routers that look into the future: none."),
                         ("causality --trials 2 --detail", "Routers that look into the future: none."),
                         ("rosetta", "One batch under 12 conventions: "),
                         ("rosetta --detail", "One batch under 12 conventions: "),
                         ("bench --preset tiny --batch 4 --steps 2 --threads 1", "A training step takes ")):
        status, out, _ = run(line)
        assert status == 0 and re.match(answer, out) and max(map(len, out.splitlines())) <= 80, line
    assert "; threads: 1;" in out and out.endswith("Picture: runs/bench/bench.png\n")
    assert Path("runs/bench/bench.png").read_bytes().startswith(b"\x89PNG")


def test_gradcheck_has_status_1_for_a_wrong_gradient(run, monkeypatch):
    for status in (0, 1):
        def check(config, say, rounds, detail, right=status == 0):
            say(f"{config.d_model} {list(rounds(2))} {detail}")
            return right

        monkeypatch.setattr(gradcheck, "check_everything", check)
        assert run("gradcheck --d-model 8") == (status, "8 [0, 1] False\n", "gradcheck: 2 of 2 jobs\n")
        assert run("gradcheck --detail")[1] == "16 [0, 1] True\n"


def test_the_cost_of_a_sparse_run_says_what_its_masks_save(run):
    run("train --text words.txt --preset tiny --n-steps 1 --eval-batches 1 --sparsity 0.75 --run runs/sparse")
    found = json.loads(run("cost --run runs/sparse --text words.txt --json")[1])
    sparse, masked = found["sparse"], found["sparse"]["masked"]
    assert masked["kept"] == masked["total"] / 4 and sparse["parameters"]["total"] == found["parameters"]["total"]
    assert sparse["forward_flops_per_token"]["numpy"] == found["forward_flops_per_token"]
    text = run("cost --run runs/sparse --text words.txt")[1]
    assert re.search(f"zeros skipped .* {sparse['forward_flops_per_token']['ideal']:,.0f} ", text)
    assert text.index("The masks save") < text.index("What is saved without the masks")
    assert "sparse" not in run("cost --run runs/done --text words.txt --json")[1]


def test_a_figure_that_cannot_be_drawn_keeps_no_other_from_it(run, monkeypatch):
    def fail():
        raise ValueError("there is no routers.npz")

    drawn = []
    for module in (diagrams, routers, compare, sparsity, cost_shares, studies, lessons):
        monkeypatch.setattr(module, "figure", lambda module=module: drawn.append(module))
    for there in (True, False):
        monkeypatch.setattr(tour, "draw_again", lambda there=there: there)
        status, out, _ = run("figures")
        assert status == 0 and ("not changed: `python -m minimoe` trains the models that" in one_line(out)) == (
            not there)
    assert drawn == [diagrams, routers, compare, sparsity, cost_shares, studies, lessons] * 2
    monkeypatch.setattr(routers, "figure", fail)
    status, _, err = run("figures")
    assert status == 2 and "there is no routers.npz" in one_line(err)
    assert drawn[-5:] == [compare, sparsity, cost_shares, studies, lessons]


def program(made, code, *words, **options):
    """A process of its own, in the folder of the runs."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=made, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, encoding="utf-8")


def test_route_needs_no_matplotlib(made):
    code = ("import sys; from minimoe import cli; status = cli.main(sys.argv[1:]); "
            "print(status, {'matplotlib', 'IPython', 'nbformat'} & sys.modules.keys())")
    out, err = program(made, code, "route", "--run", "runs/done", "cat").communicate()
    assert out.splitlines()[-1] == "0 set()" and err == ""


def test_a_reader_that_goes_away_is_no_error(made):
    code = "import sys; from minimoe import cli; sys.exit(cli.main())"
    with program(made, code, "generate", "--run", "runs/done", "--prompt", "the", "--n-tokens", "100000") as process:
        process.stdout.read(10)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 0)
