"""The doctor: numbers by hand on made-up records, no alarm on a healthy run, the right alarms on a sick one."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minimoe import cli
from minimoe.analysis import doctor
from minimoe.config import ModelConfig, TrainConfig
from minimoe.moe import routers
from minimoe.training import corpus, data, loop

MODES = [mode.name for mode in doctor.MODES]
TEXT = data.build(corpus.clusters(length=4000), 16)
HEALTHY = ModelConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=2, d_hidden=16, n_experts=8, top_k=2,
                      max_sequence=16)
TRAINING = TrainConfig(n_steps=60, batch=8, sequence=16, warmup_steps=10, learning_rate=0.01, eval_every=6,
                       eval_batches=12, record_every=2)


@pytest.fixture(scope="module")
def healthy():
    return loop.train(loop.new_state(HEALTHY, TRAINING, TEXT), TEXT)


@pytest.fixture(scope="module")
def sick():
    """Room for the mean load only, and from the start all characters have something in common that expert 5 likes."""
    config = replace(HEALTHY, balance_coef=0.0, z_coef=0.0, capacity_factor=1.0)
    state = loop.new_state(config, TRAINING, TEXT)
    state.params["embed.w_VD"] += np.float32(0.5)
    for i in config.moe_layers:
        state.params[f"layers.{i}.moe.w_router_DE"][:, 5] += np.float32(0.5)
    return loop.train(state, TEXT)


def found(state):
    """Mode -> Finding."""
    return {finding.mode.name: finding for finding in doctor.examine(state)}


def look(mode, history, n_steps=100, step=100, eval_batches=100, **model):
    """Alarm and evidence of a run of two layers, of which only the second has a router, with 4 experts, 2 per token."""
    config = ModelConfig(**dict(vocab_size=10, n_layers=2, first_dense_layers=1, n_experts=4, top_k=2) | model)
    state = SimpleNamespace(model_config=config, history=history, step=step,
                            train_config=TrainConfig(n_steps=n_steps, eval_batches=eval_batches))
    return found(state)[mode][1:]


def loads(share_E, held_out_E=None):
    """A history with this load at every record and evaluation."""
    return {"router_load": [np.array([share_E])] * 8, "eval_load": [np.array([[held_out_E or share_E]])]}


EVEN, HALF = [0.25] * 4, [0.5, 0.5, 0, 0]


def records(name, *values):
    return {f"router_{name}": [np.array(value, ndmin=1) for value in values]}


def dropping(training, held_out, position=(0.0,) * 8, sequence=(0.0,) * 8):
    """By position in two of eight records, the late ones: nothing and twice the given value, so that it is the mean."""
    return {"eval_drop_position": [np.full((1, 8), held_out)]} | records("drop", training) | {
        f"router_drop_{place}": [np.array([share]) * factor for factor in (9, 9, 9, 9, 9, 9, 0, 2)]
        for place, share in (("position", position), ("sequence", sequence))}


def gradients(gates, own, experts):
    return records("grad_gates", gates) | records("grad_own", own) | records("grad_experts", experts)


def informed(token, position, domain, share_E=None):
    return loads(share_E or EVEN) | {f"eval_information_{name}": [np.array([value])] for name, value in
                                     (("token", token), ("position", position), ("domain", domain))}


def moving(steps, experts, n_experts=4):
    """Evaluations at which the only token has these experts."""
    bits = [np.packbits(np.isin(np.arange(n_experts), chosen))[None, None] for chosen in experts]
    return {"eval_step": list(steps), "eval_experts": bits}


LAYERS = np.array([[0.5, 0, 0.5, 0], EVEN, [0.002, 0.498, 0.3, 0.2]])
BALANCED_AND_NOT = {"router_load": [np.array([HALF, EVEN])], "eval_load": [np.array([[HALF, EVEN]])]} | {
    f"eval_information_{name}": [np.array([0.0, 0.2])] for name in ("token", "position", "domain")}
LIMITED = dict(capacity_factor=1.0)

MADE_UP = {  # mode -> cases: history, what else the run has, alarm, the evidence or a part of it
    "router collapse": [
        # entropy of (1/2, 1/4, 1/4) is 1.5 log 2, and 2 ** 1.5 = 2.83; the limit is 2 + (4 - 2) / 4
        (loads([0.5, 0.25, 0.25, 0]), {}, False,
         "^2.8 of 4 experts in use in layer 1 (alarm below 2.5): in training 2.8, on held-out text 2.8$"),
        (loads(EVEN, HALF), {}, True, "in training 4.0, on held-out text 2.0; balanced in training only, by noise"),
        (loads(HALF, EVEN), {}, True, "in training 2.0, on held-out text 4.0"),
        (loads(EVEN), dict(top_k=4), None, "every token uses all experts")],
    "dead experts": [
        (loads([0.4, 0.28, 0.3, 0.02]), {}, False,  # 4 * 0.02 = 8 % of an even load
         "the least used, expert 3 of layer 1, has 8.0% of an even load (alarm below 1%)"),
        ({"router_load": [LAYERS], "eval_load": [LAYERS[None]]}, dict(n_layers=4), True,
         "; dead in layer 1: 1, 3; layer 3: 0"),
        (loads([0.4, 0.3, 0.2975, 0.0025]), {}, False, "1.0% of an even load"),  # just alive
        (loads(HALF, EVEN), {}, False, "100.0% of an even load")],
    "overload": [
        # expert 0 in half of the batches and expert 1 in the others: always 0.8, 3.2 times 1/4, but 0.45 on average
        (records("load", *[[[0.8, 0.1, 0.1, 0]], [[0.1, 0.8, 0.1, 0]]] * 4) | {"eval_load": [np.array([[EVEN]])]},
         dict(top_k=1), True, "the busiest expert has 3.2 times an even load in layer 1 (alarm above 3)"),
        (loads([0.75, 0.25, 0, 0]), dict(top_k=1), False, "has 3.0 times")],
    "dropped tokens": [
        (dropping(0.25, 0, [0, 0.1] + [0.3] * 4 + [0.3, 0.4], [0, 0, 0.2, 0.2, 0.2, 0.4, 0.4, 0.6]), LIMITED, True,
         "25.0% of assignments dropped in layer 1 (alarm above 10%); from first to last quarter of a sequence 5.0% to "
         "35.0%, of a group 0.0% to 50.0%"),
        (dropping(0, 0.2), dict(eval_capacity_factor=1.0), True, "20.0%"), (dropping(0.09, 0.09), LIMITED, False, ""),
        ({}, {}, False, "nothing is dropped: capacity_factor is none")],
    "starved router": [
        (gradients(0.001, 0.05, 0.5), {}, True, "the task's gradient on the router is 0.2% of that on its experts in "
         "layer 1 (alarm below 1%); that of its auxiliary losses 10.0%"),
        (gradients(0.01, 0, 0.5), {}, False, "is 2.0%"), (gradients(0.0, 0.0, 0.0), {}, True, "is 0.0%"),
        ({}, dict(router="hash"), None, "router 'hash' has no scores and nothing to learn")],
    "entropy collapse": [  # log 4 = 1.386: 0.13 is 9 % of it, 0.15 is 11 %
        (records("entropy", 0.13), {}, True,
         "the router's entropy is 9.4% of the largest possible, 1.39 nats, in layer 1 (alarm below 10%)"),
        (records("entropy", 0.15), {}, False, "")],
    "unspecialized": [
        # an even load of 4 experts and 2 per token: log 4 - log 2 = 0.693, of which 0.035 is just above 5 %
        (informed(0.034, 0.5, 0.01), {}, True, "the expert carries 4.9% of the information that it could about the "
         "token in layer 1 (alarm below 5%): 0.03 nats about the token, 0.01 about the domain, 0.50 about the "
         "position"),
        (informed(0.035, 0.5, 0.01), {}, False, ""), (informed(0, 0, 0.1), {}, False, "0.10 about the domain"),
        (informed(0.035, 0.5, 0.01), dict(top_k=1), True, ""),  # of log 4
        (informed(np.log(4), 0, 0), dict(top_k=1), False, "the expert carries 100.0% of the information"),
        (informed(-0.01, -0.02, -0.01), {}, True, "carries 0.0%"),
        (informed(0, 0, 0, HALF), {}, None, "the load is not balanced, or every token uses all experts"),
        (BALANCED_AND_NOT, dict(n_layers=3), False, "28.9% of the information that it could about the token in layer 2"
         ),  # 0.2 / 0.693
        # five batches of 12 * 64 tokens with 2 experts: 7680 assignments, 5 for each of 384 * 4 pairs
        (informed(0, 0, 0), dict(vocab_size=385, eval_batches=5), None,
         "^3840 held-out tokens are too few to tell; increase eval_batches$"),
        (informed(0, 0, 0), dict(vocab_size=384, eval_batches=5), True, ""),
        (informed(0.5, 0, 0), dict(vocab_size=385, eval_batches=5), False, "")],
    "late churn": [  # between the last evaluation and the last that is a tenth of the run before it
        (moving((50, 90, 100), ([2, 3], [0, 1], [0, 2])), {}, True,
         "50.0% of assignments changed between steps 90 and 100 in layer 1 (alarm above 20%)"),
        (moving((50, 89, 99, 100), ([2, 3], [0, 1], [0, 2], [0, 2])), {}, True, "between steps 89 and 100"),
        (moving((95, 100), ([0, 1], [2, 3])), {}, True, "100.0% of assignments changed between steps 95 and 100"),
        (moving((90, 100), ([0, 8], [0, 9]), 11), dict(n_experts=11), True, "50.0% of"),  # more than a byte has bits
        (moving((90, 100), ([0, 1], [1, 0])), {}, False, "0.0% of"),
        (moving((65, 75), ([0, 1], [2, 3])), dict(step=75), True, "between steps 65 and 75"),
        (moving((64, 74), ([0, 1], [2, 3])), dict(step=74), None, "too early to tell, at step 74 of 100"),
        (moving((100,), ([0, 1],)), {}, None, "or only one evaluation"),
        # an older version began the run: the experts of step 20 are unknown, those there are belong to the last steps
        (moving((50, 90, 95, 100), ([0, 1], [2, 3], [0, 2], [0, 2])) | {"eval_step": [10, 20, 50, 90, 95, 100]}, {},
         True, "50.0% of assignments changed between steps 90 and 100"),
        (moving((100,), ([0, 1],)) | {"eval_step": [50, 90, 100]}, {}, None, "or only one evaluation")],
    "logit growth": [
        (records("logit", 1.5, 3.0, 9.0, 10.5), {}, True, "the largest logit of a token is 10.5 nats in layer 1 (alarm "
         "above 10); in the first recorded batch 1.5"),
        # of eight records the last two are late: (9 + 12) / 2 is an alarm, (9 + 11) / 2 is not, and 99 was long ago
        (records("logit", *[99] * 6, 9, 12), {}, True, ""), (records("logit", *[99] * 6, 9, 11), {}, False, ""),
        (records("logit", [11.0, 5.0, 30.0, 12.0]), dict(n_layers=5), True,
         "30.0 nats in layer 3 (alarm above 10); also in 1, 4")],
}


@pytest.mark.parametrize("mode", MODES)
def test_a_symptom_by_hand(mode):
    for history, run, alarm, evidence in MADE_UP[mode]:
        seen, words = look(mode, history, **run)
        assert seen is alarm and evidence in f"^{words}$", (evidence, words)


def test_without_a_choice_there_is_nothing_to_examine(monkeypatch):
    for fields in (dict(router="soft"), dict(n_experts=1, top_k=1), dict(first_dense_layers=2)):
        state = loop.new_state(replace(HEALTHY, **fields), TRAINING, TEXT)
        assert doctor.examine(state) == [] and doctor.report(state).startswith("Nothing to examine")


@pytest.mark.parametrize("router", routers.POLICIES)
def test_every_router_can_be_examined(router):
    """In one layer of two, with a limit; routers without weights have no scores, gradients and entropy either."""
    config = ModelConfig(**dict(vocab_size=32, d_model=8, n_layers=2, n_heads=2, d_hidden=4, n_experts=4,
                                max_sequence=16, first_dense_layers=1, capacity_factor=1.0), router=router,
                         top_k=routers.POLICIES[router].FACTS.top_k or 2)
    state = loop.train(loop.new_state(config, replace(TRAINING, n_steps=2, warmup_steps=1, eval_every=1), TEXT), TEXT)
    findings = found(state)
    assert list(findings) == MODES and "nan" not in doctor.report(state, detail=True)
    without = {name for name in ("starved router", "entropy collapse", "logit growth") if findings[name].alarm is None}
    assert len(without) == (3 if router in ("hash", "random", "uniform") else 0)


def test_what_an_older_version_did_not_record_is_not_judged(healthy):
    known = ("router_step", "router_load", "router_drop", "router_entropy", "eval_step", "eval_load")
    older = replace(healthy, history={name: healthy.history[name] for name in known})
    unknown = [name for name, finding in found(older).items() if finding.alarm is None]
    assert unknown == ["starved router", "unspecialized", "late churn", "logit growth"]
    assert " ".join(doctor.report(older).split()).startswith(
        f"No alarm: the routers of this run look healthy; nothing to judge {', '.join(unknown)} by.")
    assert not set(unknown) & set(doctor.report(older).split("No sign of: ")[1].replace("\n", " ").split(", "))
    new = found(loop.new_state(replace(HEALTHY, capacity_factor=1.0), TRAINING, TEXT))
    assert all(finding.alarm is None and finding.evidence.startswith("not recorded") for finding in new.values())


def test_the_report_leads_with_the_verdict_on_a_healthy_and_a_sick_run_and_says_what_each_alarm_means(healthy, sick):
    lines = doctor.report(healthy, detail=True).splitlines()
    assert lines[0] == "No alarm: the routers of this run look healthy."
    assert " ".join(lines[1:3]) == ("router softmax_topk, 8 experts, 2 per token; auxiliary losses: balance 0.01, z "
                                    "0.001; step 60 of 60")
    assert [line[4:20].rstrip() for line in lines if line.startswith("ok")] == MODES and max(map(len, lines)) <= 80
    assert re.search(r"The busiest expert has [12]\.\d times an even load in layer \d \(alarm above 3\)\.",
                     " ".join(doctor.report(healthy).split()))
    report = " ".join(doctor.report(sick, detail=True).split())
    assert report.startswith("2 alarms: overload, dropped tokens. router")
    short = " ".join(doctor.report(sick).split())
    for mode, alarm, evidence in doctor.examine(sick):
        told = f"{mode.name}: {mode.meaning} Evidence: {evidence}. What usually helps: {mode.remedy}" in short
        assert told == bool(alarm) and (mode.name in short.split("No sign of: ")[1]) == (alarm is False)
    assert re.search(r"busiest expert has [34]\.\d times .* \d\d\.\d% of assignments dropped in layer", report)
    for mode in doctor.MODES:
        told = f"{mode.name}: {mode.meaning} What usually helps: {mode.remedy}" in report
        assert told == bool(found(sick)[mode.name].alarm), mode.name


def test_health_is_not_called_early(healthy):
    """Before the last quarter, or in a run of fewer than 50 steps."""
    for step, n_steps, early in ((74, 100, True), (75, 100, False), (49, 49, True), (50, 50, False)):
        state = replace(healthy, step=step, train_config=replace(TRAINING, n_steps=n_steps, warmup_steps=1))
        assert ("it is too early" in doctor.report(state).replace("\n", " ")) == early, step


def test_the_masks_of_a_sparse_run_are_looked_at(healthy):
    """One of 8 x 16 outputs has no weight, two of 8 x 32 inputs are not used."""
    mask = np.ones((8, 32, 16), bool)
    mask[3, :, 0] = mask[5, 7:9] = False
    words = " ".join(doctor.report(replace(healthy, masks={"layers.0.moe.w_up_EDF": mask})).split())
    assert ("sparse: 1.6% of the weights with a mask are zero; in their matrices 1 of 128 outputs have no weight left, "
            "so they are always 0; 2 of 256 inputs are not used") in words


def test_every_remedy_is_one_that_the_program_has():
    """Options of `train`, and names of routers."""
    words = " ".join(mode.remedy for mode in doctor.MODES)
    options, parser = re.findall(r"--[a-z][a-z-]+", words), cli.parser()
    assert len(options) > 10
    for option in options:
        assert parser.parse_args(["train", option, {"--router": "base"}.get(option, "1")])
    assert set(re.findall(r"--router (\w+)", words)) <= set(routers.POLICIES)
