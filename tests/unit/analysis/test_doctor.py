"""The doctor: every alarm on a run that was trained to fail in that way, silence on a healthy one, numbers by hand."""

import math
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cli
from minimoe.analysis import doctor
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe.routers import ROUTERS
from minimoe.training import checkpoint, corpus, data, loop

MODES = [mode.name for mode in doctor.MODES]
TEXT = data.build(corpus.clusters(length=4000), 16)
HEALTHY = ModelConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=2, d_hidden=16, n_experts=8, top_k=2,
                      max_sequence=16)
FREE = replace(HEALTHY, balance_coef=0.0, z_coef=0.0)
TRAINING = TrainConfig(n_steps=100, batch=8, sequence=16, warmup_steps=10, learning_rate=0.01, eval_every=10,
                       eval_batches=12, record_every=2)
FAST = dict(learning_rate=0.3, min_learning_rate=0.3, weight_decay=0.0)


def louder(factor):
    """A start with larger scores: gates are 0 and 1 from the beginning."""
    def change(params, i):
        params[f"layers.{i}.moe.w_router_DE"] *= np.float32(factor)
    return change


def pushed(expert, by):
    """A start in which all characters have something in common, and one expert likes (or hates) that."""
    def change(params, i):
        if i == 0:
            params["embed.w_VD"] += np.float32(0.5)
        params[f"layers.{i}.moe.w_router_DE"][:, expert] += np.float32(by)
    return change


RUNS = {
    "healthy": (HEALTHY, None, {}),
    "pushed to expert 0": (replace(FREE, top_k=1), pushed(0, 0.5), {}),
    "pushed from expert 3": (FREE, pushed(3, -0.5), {}),
    "pushed to expert 5, with little room": (replace(FREE, capacity_factor=1.0), pushed(5, 0.5), {}),
    "loud": (FREE, louder(15), {}),
    "deafening": (FREE, louder(300), {}),
    "by lot": (replace(HEALTHY, router="random"), None, {}),
    "in turn": (replace(HEALTHY, router="uniform"), None, {}),
    "healthy, in groups": (HEALTHY, None, dict(groups=2)),
    "pushed to expert 5, with little room, in groups": (
        replace(FREE, capacity_factor=1.0), pushed(5, 0.5), dict(groups=2)),
    "never slower": (HEALTHY, None, dict(learning_rate=0.03, min_learning_rate=0.03)),
    "much too fast": (FREE, None, FAST),
}

FAILURES = [  # the mode of failure, the run that has it, what the evidence says
    ("router collapse", "pushed to expert 0", r"^[12]\.\d of 8 experts in use in layer . \(alarm below 2.75\)"),
    ("dead experts", "pushed from expert 3", r"dead in layer 0: (\d, )*3"),
    ("overload", "pushed to expert 0", r"^the busiest expert has [4-8]\.\d times an even load"),
    ("overload", "pushed to expert 5, with little room", r"^the busiest expert has [34]\.\d times"),
    ("dropped tokens", "pushed to expert 5, with little room", r"^\d\d\.\d% of assignments dropped in layer"),
    ("overload", "pushed to expert 5, with little room, in groups", r"^the busiest expert has [34]\.\d times"),
    ("dropped tokens", "pushed to expert 5, with little room, in groups", r"^\d\d\.\d% of assignments dropped in"),
    ("starved router", "deafening", r"is 0\.\d% of that on its experts in layer \d \(alarm below 1%\)"),
    ("entropy collapse", "loud", r"^the router's entropy is \d\.\d% of the largest possible, 2\.08 nats, in layer"),
    ("unspecialised", "by lot", r"0\.00 nats of the token, 0\.00 of the domain, 1\.\d\d of the position"),
    ("unspecialised", "in turn", r"0\.00 nats of the token, 0\.00 of the domain, 1\.\d\d of the position"),
    ("late churn", "never slower", r"^\d\d\.\d% of assignments changed between steps 90 and 100 in layer"),
    ("logit growth", "much too fast",
     r"is \d+\.\d nats in layer \d \(alarm above 10\).*; in the first recorded batch [12]\.\d"),
]


@cache
def trained(name):
    config, change, training = RUNS[name]
    state = loop.new_state(config, replace(TRAINING, **training), TEXT)
    for i in config.moe_layers if change else ():
        change(state.params, i)
    return loop.train(state, TEXT)


def found(state):
    """Mode -> Finding."""
    return {finding.mode.name: finding for finding in doctor.examine(state)}


def alarms(state):
    return [name for name, finding in found(state).items() if finding.alarm]


@pytest.mark.parametrize(("mode", "run", "evidence"), FAILURES)
def test_a_run_that_fails_raises_the_alarm_and_says_by_what_evidence(mode, run, evidence):
    finding = found(trained(run))[mode]
    assert finding.alarm is True and re.search(evidence, finding.evidence), finding.evidence


def test_every_mode_has_a_run_that_fails_so():
    assert {mode for mode, _, _ in FAILURES} == set(MODES)


@pytest.mark.parametrize("run", ["healthy", "healthy, in groups"])
def test_a_healthy_run_raises_no_alarm(run):
    findings = found(trained(run))
    assert list(findings) == MODES
    assert [finding.alarm for finding in findings.values()] == [False] * len(MODES)


@pytest.mark.parametrize(("run", "expected"), [
    ("by lot", ["unspecialised"]), ("never slower", ["late churn"]), ("loud", ["entropy collapse", "logit growth"])])
def test_a_failure_does_not_raise_the_alarm_of_another(run, expected):
    assert alarms(trained(run)) == expected


def made_up(history, n_steps=100, step=100, eval_batches=100, **model):
    """A run of two layers, of which the second alone has a router, with 4 experts, 2 a token."""
    config = ModelConfig(**dict(vocab_size=10, n_layers=2, first_dense_layers=1, n_experts=4, top_k=2) | model)
    return SimpleNamespace(model_config=config, history=history, step=step,
                           train_config=TrainConfig(n_steps=n_steps, eval_batches=eval_batches))


def loads(*shares):
    """A history with this load at every record and evaluation."""
    return {"router_load": [np.array([shares])] * 8, "eval_load": [np.array([[shares]])]}


def look(mode, history, **run):
    finding = found(made_up(history, **run))[mode]
    return finding.alarm, finding.evidence


def test_experts_in_use_by_hand():
    # entropy of (1/2, 1/4, 1/4) is 1.5 log 2, and 2 ** 1.5 = 2.83; the limit is 2 + (4 - 2) / 4
    assert look("router collapse", loads(0.5, 0.25, 0.25, 0)) == (
        False, "2.8 of 4 experts in use in layer 1 (alarm below 2.5): in training 2.8, on held-out text 2.8")


def test_a_collapse_on_held_out_text_alone_is_one():
    history = loads(0.25, 0.25, 0.25, 0.25) | {"eval_load": [np.array([[[0.5, 0.5, 0, 0]]])]}
    assert look("router collapse", history)[0] is True


def test_a_collapse_in_training_alone_is_one():
    history = loads(0.25, 0.25, 0.25, 0.25) | {"router_load": [np.array([[0.5, 0.5, 0, 0]])] * 8}
    assert look("router collapse", history)[0] is True


def test_where_every_token_has_all_experts_none_can_collapse():
    assert look("router collapse", loads(0.25, 0.25, 0.25, 0.25), top_k=4) == (None, "every token has all experts")


def test_the_least_used_expert_by_hand():
    # 4 * 0.02 = 8 % of an even load
    assert look("dead experts", loads(0.4, 0.28, 0.3, 0.02)) == (
        False, "the least used, expert 3 of layer 1, has 8.0% of an even load (alarm below 1%)")


def test_dead_experts_are_named_layer_by_layer():
    load_LE = np.array([[0.5, 0, 0.5, 0], [0.25, 0.25, 0.25, 0.25], [0.002, 0.498, 0.3, 0.2]])
    history = {"router_load": [load_LE], "eval_load": [load_LE[None]]}
    alarm, evidence = look("dead experts", history, n_layers=4)
    assert alarm and evidence.endswith("; dead in layer 1: 1, 3; layer 3: 0")


def test_an_expert_with_tokens_on_held_out_text_is_not_dead():
    history = loads(0.5, 0.5, 0, 0) | {"eval_load": [np.array([[[0.25, 0.25, 0.25, 0.25]]])]}
    assert look("dead experts", history)[0] is False


def test_the_busiest_expert_is_that_of_each_batch():
    # expert 0 in half of the batches and expert 1 in the others: always 0.8, 3.2 times 1/4, but 0.45 on average
    batches = [np.array([[0.8, 0.1, 0.1, 0]]), np.array([[0.1, 0.8, 0.1, 0]])] * 4
    assert look("overload", loads(0.4, 0.4, 0.1, 0.1) | {"router_load": batches}, top_k=1) == (
        True, "the busiest expert has 3.2 times an even load in layer 1 (alarm above 3)")


def dropping(training, held_out, position=(0.0,) * 8, sequence=(0.0,) * 8):
    return {"router_drop": [np.array([training])] * 4, "eval_drop_position": [np.full((1, 8), held_out)],
            "router_drop_position": [np.array([position])] * 4, "router_drop_sequence": [np.array([sequence])] * 4}


def test_drops_by_hand():
    history = dropping(0.25, 0, [0, 0.1] + [0.3] * 4 + [0.3, 0.4], [0, 0, 0.2, 0.2, 0.2, 0.4, 0.4, 0.6])
    assert look("dropped tokens", history, capacity_factor=1.0) == (
        True, "25.0% of assignments dropped in layer 1 (alarm above 10%); from first to last quarter of a sequence "
        "5.0% to 35.0%, of a group 0.0% to 50.0%")


@pytest.mark.parametrize(("training", "held_out", "alarm"), [(0.2, 0, True), (0, 0.2, True), (0.09, 0.09, False)])
def test_drops_count_in_training_and_on_held_out_text(training, held_out, alarm):
    assert look("dropped tokens", dropping(training, held_out), eval_capacity_factor=1.0)[0] is alarm


def test_without_a_limit_nothing_is_dropped():
    assert look("dropped tokens", {}) == (False, "nothing is turned away: capacity_factor is none")


def gradients(gates, own, experts):
    return {f"router_grad_{name}": [np.array([length])] * 4
            for name, length in (("gates", gates), ("own", own), ("experts", experts))}


def test_the_gradient_of_the_task_and_of_the_losses_are_measured_by_that_of_the_experts():
    assert look("starved router", gradients(0.001, 0.05, 0.5)) == (
        True, "the task's gradient on the router is 0.2% of that on its experts in layer 1 (alarm below 1%); that of "
        "its auxiliary losses 10.0%")
    assert look("starved router", gradients(0.01, 0, 0.5))[0] is False


def test_without_any_gradient_a_router_is_starved():
    assert look("starved router", gradients(0.0, 0.0, 0.0))[0] is True


def test_entropy_by_hand():
    # log 4 = 1.386: 0.13 is 9 % of it, 0.15 is 11 %
    evidence = "the router's entropy is 9.4% of the largest possible, 1.39 nats, in layer 1 (alarm below 10%)"
    assert look("entropy collapse", {"router_entropy": [np.array([0.13])]}) == (True, evidence)
    assert look("entropy collapse", {"router_entropy": [np.array([0.15])]})[0] is False


def informed(token, position, domain, load=(0.25, 0.25, 0.25, 0.25)):
    return loads(*load) | {f"eval_information_{name}": [np.array([value])] for name, value in
                           (("token", token), ("position", position), ("domain", domain))}


def test_information_is_measured_by_the_most_there_can_be():
    # an even load of 4 experts and 2 a token: log 4 - log 2 = 0.693, of which 0.035 is just above 5 %
    assert look("unspecialised", informed(0.034, 0.5, 0.01)) == (
        True, "the expert tells 4.9% of the most it could of the token in layer 1 (alarm below 5%): 0.03 nats of the "
        "token, 0.01 of the domain, 0.50 of the position")
    assert look("unspecialised", informed(0.035, 0.5, 0.01))[0] is False
    assert look("unspecialised", informed(0.035, 0.5, 0.01), top_k=1)[0] is True  # of log 4


def test_an_expert_that_knows_its_domain_is_specialised():
    assert look("unspecialised", informed(0, 0, 0.1))[0] is False


def test_information_below_zero_is_none():
    assert "tells 0.0% of the most it could" in look("unspecialised", informed(-0.01, -0.02, -0.01))[1]


def test_a_layer_that_has_collapsed_is_not_called_unspecialised():
    assert look("unspecialised", informed(0, 0, 0, (0.5, 0.5, 0, 0))) == (
        None, "the load is not balanced, or every token has all experts")


def test_a_balanced_layer_is_looked_at_beside_one_that_has_collapsed():
    load_LE = np.array([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    history = {"router_load": [load_LE], "eval_load": [load_LE[None]]} | {
        f"eval_information_{name}": [np.array([0.0, 0.2])] for name in ("token", "position", "domain")}
    alarm, evidence = look("unspecialised", history, n_layers=3)
    assert alarm is False and "28.9% of the most it could of the token in layer 2" in evidence  # 0.2 / 0.693


def test_too_few_tokens_raise_no_alarm():
    # one batch of 12 * 64 tokens with 2 experts: 1536 assignments, fewer than 5 for each of 100 * 4 pairs
    assert look("unspecialised", informed(0, 0, 0), vocab_size=100, eval_batches=1) == (
        None, "768 held-out tokens are too few to tell; raise eval_batches")
    assert look("unspecialised", informed(0, 0, 0), vocab_size=70, eval_batches=1)[0] is True
    assert look("unspecialised", informed(0.5, 0, 0), vocab_size=100, eval_batches=1)[0] is False


def moving(steps, experts, n_experts=4):
    """Evaluations at which the only token has these experts."""
    bits = [np.packbits(np.isin(np.arange(n_experts), chosen))[None, None] for chosen in experts]
    return {"eval_step": list(steps), "eval_experts": bits}


@pytest.mark.parametrize(("steps", "experts", "words"), [
    # the last evaluation and the last that is a tenth of the run before it
    ((50, 90, 100), ([2, 3], [0, 1], [0, 2]), "50.0% of assignments changed between steps 90 and 100"),
    ((50, 89, 99, 100), ([2, 3], [0, 1], [0, 2], [0, 2]), "50.0% of assignments changed between steps 89 and 100"),
    ((95, 100), ([0, 1], [2, 3]), "100.0% of assignments changed between steps 95 and 100"),
])
def test_churn_by_hand(steps, experts, words):
    assert look("late churn", moving(steps, experts)) == (True, f"{words} in layer 1 (alarm above 20%)")


def test_churn_among_more_experts_than_a_byte_has_bits():
    assert look("late churn", moving((90, 100), ([0, 8], [0, 9]), 11), n_experts=11)[1].startswith("50.0% of")


def test_tokens_that_stay_are_no_churn():
    assert look("late churn", moving((90, 100), ([0, 1], [1, 0])))[0] is False


@pytest.mark.parametrize(("steps", "experts"), [((100,), ([0, 1],)), ((64, 74), ([0, 1], [2, 3]))])
def test_churn_is_no_failure_until_late(steps, experts):
    alarm, evidence = look("late churn", moving(steps, experts), step=steps[-1])
    assert alarm is None and evidence.startswith(f"too early to tell, at step {steps[-1]} of 100")


def test_logits_by_hand():
    history = {"router_logit": [np.array([1.5]), np.array([3.0]), np.array([9.0]), np.array([10.5])]}
    assert look("logit growth", history) == (
        True, "the largest logit of a token is 10.5 nats in layer 1 (alarm above 10); in the first recorded batch 1.5")


def test_late_is_the_last_quarter():
    # of eight records the last two: (9 + 12) / 2 is an alarm, (9 + 10) / 2 is not, and 99 was long ago
    for last, alarm in ((12.0, True), (10.0, False)):
        records = [np.array([value]) for value in (99.0, 99, 99, 99, 99, 99, 9, last)]
        assert look("logit growth", {"router_logit": records})[0] is alarm


def test_other_layers_with_the_alarm_are_named_too():
    history = {"router_logit": [np.array([11.0, 5.0, 30.0, 12.0])]}
    assert "30.0 nats in layer 3 (alarm above 10); alarm in 1, 4 too" in look("logit growth", history, n_layers=5)[1]


@pytest.mark.parametrize("config", [
    replace(HEALTHY, router="soft"), replace(HEALTHY, n_experts=1, top_k=1), replace(HEALTHY, first_dense_layers=2)],
    ids=["soft", "one expert", "dense layers"])
def test_without_a_choice_there_is_nothing_to_examine(config):
    state = loop.train(loop.new_state(config, replace(TRAINING, n_steps=2), TEXT), TEXT)
    assert doctor.examine(state) == []
    assert doctor.report(state).startswith("Nothing to examine")


@pytest.mark.parametrize("router", [name for name, router in ROUTERS.items() if not router.FACTS.soft])
@pytest.mark.parametrize("change", [{}, dict(first_dense_layers=1, capacity_factor=1.0), dict(n_experts=2)])
def test_every_router_can_be_examined(router, change):
    config = replace(HEALTHY, router=router, top_k=ROUTERS[router].FACTS.top_k or 2, **change)
    state = loop.train(loop.new_state(config, replace(TRAINING, n_steps=2, eval_every=1), TEXT), TEXT)
    findings = found(state)
    assert list(findings) == MODES and "nan" not in doctor.report(state)
    without = [name for name in ("starved router", "entropy collapse", "logit growth") if findings[name].alarm is None]
    assert len(without) == (3 if router in ("hash", "random", "uniform") else 0)


def test_a_run_before_its_first_step_has_recorded_nothing():
    findings = found(loop.new_state(replace(HEALTHY, capacity_factor=1.0), TRAINING, TEXT))
    assert {finding.alarm for finding in findings.values()} == {None}
    assert all(finding.evidence.startswith("not recorded") for finding in findings.values())


def test_an_older_run_is_judged_by_what_it_has_recorded():
    state = trained("healthy")
    known = ("router_step", "router_load", "router_drop", "router_entropy", "eval_step", "eval_load")
    older = replace(state, history={name: state.history[name] for name in known})
    unknown = [name for name, finding in found(older).items() if finding.alarm is None]
    assert unknown == ["starved router", "unspecialised", "late churn", "logit growth"]
    assert found(older)["late churn"].evidence.startswith("not recorded")
    assert doctor.report(older).splitlines()[-1].endswith(f"nothing to judge {', '.join(unknown)} by.")


def test_churn_of_a_run_that_an_older_version_began_is_between_steps_that_both_have_experts():
    # the experts of step 20 are unknown: those that there are belong to 50, 90, 95 and 100
    history = moving((50, 90, 95, 100), ([0, 1], [2, 3], [0, 2], [0, 2])) | {"eval_step": [10, 20, 50, 90, 95, 100]}
    assert look("late churn", history) == (
        True, "50.0% of assignments changed between steps 90 and 100 in layer 1 (alarm above 20%)")


def test_one_evaluation_since_an_older_version_is_too_few_for_churn():
    alarm, evidence = look("late churn", moving((100,), ([0, 1],)) | {"eval_step": [50, 90, 100]})
    assert alarm is None and evidence.endswith("or only one evaluation")


def test_a_run_that_an_older_version_began_is_judged_by_the_same_last_records_and_evaluations():
    state = trained("healthy")
    always = ("router_step", "router_load", "router_drop", "router_entropy", "eval_step", "eval_ce", "eval_load")
    taken_up = {name: values if name in always or not name.startswith(("eval_", "router_")) else
                values[-len(values) // 2:] for name, values in state.history.items()}
    assert len(taken_up["eval_step"]) == 10 and len(taken_up["eval_experts"]) == 5
    findings = found(replace(state, history=taken_up))
    whole = found(state)
    assert [finding.alarm for finding in findings.values()] == [False] * len(MODES)
    assert findings["late churn"] == whole["late churn"]
    assert "between steps 90 and 100" in findings["late churn"].evidence
    assert findings["unspecialised"] == whole["unspecialised"]
    assert findings["logit growth"].evidence.endswith(
        f"in the first recorded batch {_first_logit(taken_up, findings['logit growth'].evidence):.1f}")
    assert doctor.report(replace(state, history=taken_up)).splitlines()[-1].startswith("No alarm")


def _first_logit(history, evidence):
    """The first recorded logit of the layer that is told of."""
    return history["router_logit"][0][int(re.search(r"in layer (\d)", evidence)[1])]


def test_the_page_of_a_healthy_run_says_so():
    lines = doctor.report(trained("healthy")).splitlines()
    assert lines[0] == ("router softmax_topk, 8 experts, 2 a token; auxiliary losses: balance 0.01, z 0.001; "
                        "step 100 of 100")
    assert [line[7:].split("  ")[0] for line in lines if line.startswith("ok     ")] == MODES
    assert lines[-1] == "No alarm: the routers of this run look healthy."
    assert max(map(len, lines)) <= 120


def test_the_page_says_what_each_alarm_means_and_what_helps():
    state = trained("loud")
    page = " ".join(doctor.report(state).split())
    for mode in doctor.MODES:
        told = f"{mode.name}: {mode.meaning} What usually helps: {mode.remedy}" in page
        assert told == (mode.name in alarms(state)), mode.name
    assert "ALARM entropy collapse" in page and "ok router collapse" in page and "No alarm" not in page
    assert "auxiliary losses: none" in page


def test_a_mode_without_evidence_has_a_dash_and_the_reason():
    line = "-      logit growth      router 'random' has no scores and nothing to learn"
    assert line in doctor.report(trained("by lot")).splitlines()


def test_every_remedy_is_one_that_the_program_has():
    """Options of `train`, and names of routers."""
    words = " ".join(mode.remedy for mode in doctor.MODES)
    options = re.findall(r"--[a-z][a-z-]+", words)
    assert len(options) > 10
    for option in options:
        value = {"--router": "base"}.get(option, "1")
        assert cli.parser().parse_args(["train", option, value])
    assert set(re.findall(r"--router (\w+)", words)) <= set(ROUTERS)


@pytest.mark.parametrize(("run", "last"), [("healthy", "No alarm"), ("loud", "What usually helps")])
def test_the_command_prints_the_page_and_succeeds_with_and_without_alarms(run, last, tmp_path, capsys):
    checkpoint.save(tmp_path / "checkpoint.npz", trained(run))
    assert cli.main(["doctor", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out == doctor.report(trained(run)) + "\n" and last in out and err == ""


def test_the_command_without_a_run_takes_that_of_the_tour_and_names_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "runs/mine/checkpoint.npz", trained("healthy"))
    assert cli.main(["doctor"]) == 2
    assert "no trained run in runs/tour/moe/seed0 (no checkpoint.npz); there are runs/mine: choose one of them" in (
        capsys.readouterr().err)


def test_the_largest_information_is_reached_by_an_expert_for_each_token():
    # 4 tokens in turn, each with an expert of its own: H(load) = log 4
    evidence = look("unspecialised", informed(math.log(4), 0, 0), top_k=1)[1]
    assert evidence.startswith("the expert tells 100.0% of the most")
