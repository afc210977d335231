"""Words of a report: what is printed of a model beside our count, and that no word stands unexplained."""

import functools

import pytest

from minimoe.cost import all_to_all, deployment, published, report, sheet

PRINTED = {
    "mixtral-8x7b": "published: 46.7B (paper 47B), active 12.9B (paper 13B; with all embeddings; here 12,879,925,248), "
                    "source: Mixtral, arXiv:2401.04088",
    "olmoe-1b-7b": "published: 6.9B, active 1.3B (with all embeddings; here 1,282,017,280), source: OLMoE, arXiv",
    "gpt-oss-20b": "published: 20.91B, active 3.61B (without the input embedding; here 3,608,307,264), source: gpt-oss",
    "gpt-2": "published: 124M, active 124M, source: Radford",
    "switch-base-8": "published: active 0.2B, source: the released checkpoint",
    "makemoe": "published: 8.996545 M, source: output of the notebook",
}
UNEXPLAINED = ("walked", "traced", "by lot", "if one to each", "missed", "sent  ")


@functools.cache
def text(key):
    model = published.find(key)
    record = sheet.sheet(model.name, model.arch, 1024, deployment.MACHINES["h100"])
    return report.report(record | {"published": published.printed(model)})


@pytest.mark.parametrize("key", PRINTED)
def test_what_is_published_stands_beside_what_is_counted_in_the_same_way(key):
    assert PRINTED[key] in " ".join(text(key).split())


def test_of_a_model_of_a_user_nothing_is_published():
    mine = published.find("gpt-2")._replace(published={})
    assert published.printed(mine) == {} and report.of_published({}) == report.of_published(None) == ""


def test_the_conventions_are_those_of_the_table_and_name_counts():
    named = {model.published["convention"] for model in published.models().values()} - {None}
    assert named <= set(published.CONVENTIONS)
    assert list(published.CONVENTIONS.values()) == list(published.counts(published.find("gpt-2")))[2:]


def test_a_token_goes_to_experts_on_devices():
    # 8 of 256 on 8 devices: 7 elsewhere.  A device has none of the 8 with 224! 248! / (216! 256!) = 0.3386...; 7 times
    # what is left of 1
    none = 1.0
    for i in range(8):
        none *= (224 - i) / (256 - i)
    words = "with the experts on 8 devices each layer sends copies of a token to 7.00 experts, on "
    words += f"{7 * (1 - none):.2f} other devices: 11.6 MB in all layers, there and back"
    assert words in " ".join(text("deepseek-v3").split())


ROUTED = {"layer": 3, "texts": [1, 4], "touched": [2.0, 3.5], "touched_if_even": [2.0, 4.5],
          "touched_by_lot": [2.0, 4.4], "missed": 0.25, "missed_if_even": 0.5, "ranks": 4, "sent": 1500,
          "sent_if_even": 1000, "imbalance": 1.5, "seconds": 3.0, "seconds_if_even": 2.0}
STEP = {"parameters": 1, "gradients": 2, "moments": 3, "activations": 4, "activations_formula": 5, "peak": 6,
        "peak_formula": 7}


@pytest.mark.parametrize("n_experts, top_k, ranks", [(1024, 400, 8), (64, 60, 2), (10**12, 10**11, 8)])
def test_with_very_many_experts_a_token_goes_to_every_device(n_experts, top_k, ranks):
    # one is left out with less than (1 - 1/R)^K
    assert (1 - 1 / ranks) ** top_k < 1e-17
    assert all_to_all.expected_vectors(n_experts, top_k, ranks, once=True) == ranks - 1


def test_every_column_of_routing_is_explained_below_it():
    head, line, row, formula, draws, *below = report.of_routing([ROUTED]).splitlines()[1:]
    assert head.split("  ")[-1] == "time" and set(line) == {"-"}
    assert row.split() == ["3", "2.00", "3.50", "25%", "1.5", "kB", "1.50", "1.50"]
    assert formula.startswith("even routing, by formula") and draws.startswith("even routing, random draws")
    for column in ("to fetch", "to others", "busiest device", "time"):
        assert column in head and f"{column}: " in "\n".join(below)
    assert len(below) == 3 and max(map(len, below)) <= 120


def test_bytes_of_a_step_stand_in_their_columns():
    rows = [line.rsplit(maxsplit=4) for line in report.of_step(STEP).splitlines()[5:]]
    assert rows == [["kept for the backward pass, by a group", "4", "B", "5", "B"],
                    ["most at once", "6", "B", "7", "B"]]


@pytest.mark.parametrize("word", UNEXPLAINED)
def test_no_word_is_left_to_guess(word):
    assert word not in "\n".join([text("deepseek-v3"), report.of_routing([ROUTED]), report.of_step(STEP)])


def test_a_table_breaks_a_first_cell_without_room():
    lines = report.table([("name", "n" * 100), ("four words of text", "1")]).splitlines()
    # 120 - 100 - 2 = 18: there is room
    assert lines[2].startswith("four words of text  ") and len(lines) == 3
    lines = report.table([("name", "n" * 101), ("four words of text", "1")]).splitlines()
    assert lines[2].split() == ["four", "words", "of", "1"] and lines[3:] == ["text"]
    assert {len(line) for line in lines[:2]} == {13 + 2 + 101}


def test_a_dense_model_has_no_columns_of_experts():
    assert "experts used" not in text("llama-2-7b") and "even routing" not in text("llama-2-7b")
    assert "experts used" in text("mixtral-8x7b") and "even routing" in text("mixtral-8x7b")


@pytest.mark.parametrize(("seconds", "again"), [((3.0, 1.0, 1.0, 1.0, 2.0), True), ((3.0, 1.5, 1.2, 1.05, 1.0), False),
                                                ((3.0, 1.0, 1.0, 1.0, 1.05), False)])
def test_that_a_moe_saves_again_with_many_texts_is_said_where_it_does(seconds, again):
    model = published.find("mixtral-8x7b")
    record = sheet.sheet(model.name, model.arch, 1024, deployment.MACHINES["h100"])
    record["dense_twin"]["decode_seconds"] = list(seconds)
    words = " ".join(report.verdict(record).split())
    assert ("the dense model waits for FLOPs, and the MoE saves again" in words) == again
    assert "3.0 with 1 text, " in words
