"""A small picture of every kind, the words that its axes must show, and the numbers that it must draw."""

from types import SimpleNamespace

import numpy as np

from minimoe import cost
from minimoe.cost import deployment, published, sheet
from minimoe.moe.routing import Routing, Tokens
from minimoe.plots import (
    block,
    coloured_text,
    cost_shares,
    dispatch_combine,
    expert_load,
    loss_curves,
    pareto,
    router_comparison,
    sparsity_comparison,
    step_time,
)
from minimoe.plots.lessons import (
    choices,
    cutting,
    downsides,
    dropping,
    gradients,
    load_balancing,
    machines,
    one_batch,
    paths,
    races,
    sparse_models,
    sparse_training,
    specialization,
)


def shares(*shape):
    """Random loads that sum to 1 over the last axis."""
    load = np.random.default_rng(0).random(shape)
    return load / load.sum(axis=-1, keepdims=True)


def entry(name, budget, steps, total, flops, *ces):
    """What a picture of losses reads of one model at one budget."""
    return SimpleNamespace(name=name, budget=budget, steps=steps, parameters=cost.Parameters(total, total, 0, 0),
                           flops=flops, ce=np.array(ces))


STEPS = np.array([10, 20, 30])
CE = np.array([[3.0, 2.5, 2.0], [4.0, 2.0, 1.0]])  # two seeds: means 3.5, 2.25, 1.5
CURVES = {name: (STEPS, CE + i) for i, name in enumerate(("MoE", "dense, small", "dense, large"))}
RECORDS = {key: sheet.sheet(published.find(key).name, published.find(key).arch, 1024, deployment.MACHINES["h100"])
           for key in ("llama-2-7b", "mixtral-8x7b", "deepseek-v3", "gpt-2")}
ENTRIES = HALF, TOTAL, ACTIVE, FEW, MAIN, SHORTER, LONGER = [
    entry("dense, half of active", "steps", 600, 100_000, 1e9, 3.0, 3.2, 3.25),
    entry("dense, same total", "steps", 600, 800_000, 8e9, 2.0, 2.1, 2.05),
    entry("dense, same active", "steps", 600, 200_000, 2e9, 2.5, 2.55, 2.75),
    entry("MoE, 2 of 4", "steps", 600, 400_000, 2e9, 2.4, 2.5, 2.75),
    entry("MoE, 2 of 8", "steps", 600, 800_000, 2.1e9, 2.3, 2.2, 2.21),
    entry("dense, same total", "FLOPs", 158, 800_000, 2.1e9, 2.9, 2.8, 2.83),
    entry("dense, same active", "time", 1_500, 200_000, 5e9, 2.2, 2.3, 2.21)]
KINDS = {"hash": "causal", "soft": "sees the future", "gshard": "causal in evaluation"}
RUNS = {name: SimpleNamespace(ce=np.array([low, low + 0.2]), load=np.array([1.0, 2.0]), drop=np.array([0.0, 0.1]),
                              seconds=np.array([0.1, 0.2, 0.9])) for name, low in zip(KINDS, (3, 1, 2), strict=True)}
PLACES = {(0, "attention", "forward"): 0.010, (0, "experts", "backward"): 0.030, (1, "experts", "forward"): 0.025,
          (1, "experts", "backward"): 0.005, (None, "rest", "update"): 0.030}  # 0.1 s, of which experts take 60 %
WEIGHT_TE = {"one": np.array([[0.7, 0.3, 0], [0, 1, 0]]), "two": np.array([[0, 0.5, 0], [0.25, 0.25, 0]])}
COSTS = {"like small": (1.0, 1.0, 100.0, "B"), "half-way": (4.0, 8.0, 16.0, ""), "like large": (2.0, 32.0, 32.0, "s"),
         "seeds": (np.array([3.0, 5.0]), np.array([2.0, 2.0]), np.array([1.0, 1.0]), None)}
RAISED = {"healthy": [(0, 3), (0, 3), (0, 0)], "sick": [(3, 3), (1, 3), (2, 2)]}
LOST = {"one": np.array([[0, 1, 2], [2, 2, 0]]), "two": np.zeros((2, 3), int), "three": np.ones((2, 3), int)}
CE_NTF = np.array([[[3.0, 2.0], [2.5, 2.2]], [[3.2, 2.2], [2.7, 2.2]]])  # means 3.1, 2.1 and 2.6, 2.2
POINTS = np.array([[0.0, 0.1, 0.01], [0.5, 0.2, 0.02]])  # sum of dropped gates, extra loss, its error
DLOGIT_TE = np.array([[-0.5, 0.0, 0.5], [0.0, 2.0, -2.0]])
CHOSEN_TE = np.array([[True, False, True], [False, True, True]])
PROB_TE, EXPERT_TK = np.array([[0.6, 0.1, 0.3], [0.01, 0.49, 0.5]]), np.array([[0, 2], [2, 1]])
ERRORS, FLIPPED = np.array([[1.0, 1e-4], [1e-6, 10.0]]), np.array([[True, False], [False, True]])  # by step
GATE_SE = np.array([[0.75, 0.25, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0, 0.5, 0]])  # the third step chooses differently
LOAD = np.array([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.7, 0.28, 0.02]],
                 [[0.2, 0.4, 0.4], [0.1, 0.4, 0.5], [0.05, 0.35, 0.6]]])  # two seeds, three records, three experts
BUSIEST = {"no loss": (np.array([3.0, 3.2]), np.array([2.0, 2.2])),
           "even": (np.array([1.1, 1.3]), np.array([1.9, 2.3]))}
FOUND = {"layer 0": [2.0, 3.4, 5.2], "layer 1": [2.1, 3.6, 5.4]}
MODELS = {"dense, b": (8.0, 200.0), "MoE": (4.0, 150.0), "dense, a": (4.0, 100.0)}
BEFORE_T, AFTER_T = np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1])
PANELS = {"steps": ("steps", [(STEPS, CE), (STEPS, CE + 1), (STEPS, CE + 2)]),
          "time": ("seconds", [(STEPS, CE), (2 * STEPS, CE), (STEPS, CE)])}
GAPS = {"even": np.array([0.02, -0.01, 0.02]), "behind": np.array([-0.1, -0.3, -0.2])}
FAMILY = np.array([[3.0, 3.2], [2.0, 2.2], [2.4, 2.2]])  # means 3.1, 2.1, 2.3; the last two are pooled to 2.2
MOES = {"x": (2.65, 141.0), "y": (1.9, 400 - 1e-9), "z": (3.3, 100 + 1e-9)}
D, E, F = 3, 4, 5
CUT = {"heads": ("32", np.array([0.9, 0.8]), np.array([0.7, 0.4]), np.array([2.5, 3.5])), "all": ("1", [1], [1], [1])}
CE_NS = {"one": np.array([[2.0, 3.0], [2.2, 3.4]]), "two": np.array([[2.5, 3.7]])}  # means 2.1, 3.2
MASK_NDF = np.array([[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 1], [1, 0]], [[1, 1], [0, 1]]], bool)
W_DF = np.arange(8.0).reshape(4, 2) - 4
USED, ALL = np.zeros((2, 3, D, E * F), bool), np.ones((2, 3, D, F), bool)
USED[0, :, :, :F] = USED[0, :, :, 2 * F:3 * F] = True  # token 0 uses experts 0 and 2
USED[1, :, :, 3 * F:] = True  # token 1 uses expert 3
ROUTED = Routing(  # c to experts 0 and 2, a to 2 and 1, t to 2 and 0, in which there was room for one
    token_A=np.array([0, 0, 1, 1, 2, 2]), expert_A=np.array([0, 2, 2, 1, 2, 0]), rank_A=np.array([0, 1] * 3),
    gate_A=np.array([0.75, 0.25, 0.5625, 0.4375, 0.625, 0.375]), slot_A=np.array([0, 0, 1, 0, 2, 1]),
    kept_A=np.array([True, True, True, True, False, True]), logit_TE=np.zeros((3, 3)), capacity=2,
    prob_TE=np.array([[0.6, 0.2, 0.2], [0.1, 0.35, 0.45], [0.33, 0.12, 0.55]]), tokens=Tokens.anonymous(np.ones(3) > 0))
BLOCK = {"attention.w_q_DHP": np.ones((4, 2, 5)), "attention.gain_D": np.ones(4), "moe.gain_D": np.ones(4),
         "moe.w_router_DE": np.ones((4, 3)), "moe.w_up_EDF": np.ones((3, 4, 6)), "moe.w_down_EFD": np.ones((3, 6, 4))}
BIG, TINY, SPARSE = (sparsity_comparison.Point("50%", flops, np.array(ce), flops == 200) for flops, ce in (
    (400, [2.0, 2.2]), (100, [3.0, 3.2]), (200, [2.6])))
NATS, SHARE, FLOPS = "loss (nats per token)", "share of assignments", "training FLOPs (matrix products"

TITLED = {
    "losses": (lambda t: loss_curves.losses(CURVES, t), ("optimizer steps", NATS), [STEPS, CE, 1.5, 2.5]),
    "load over time": (lambda t: expert_load.load_over_time(STEPS, shares(3, 2, 3), t),
                       ("optimizer steps", SHARE), STEPS),
    "load by domain": (lambda t: expert_load.load_by_domain({"a": shares(2, 2, 3)}, ("english", "python"), t),
                       ("expert (dotted: an even split)", SHARE), [shares(2, 2, 3), 1 / 3]),
    "colored text": (lambda t: coloured_text.coloured_text([("english", "a\nb", np.arange(3))], 3, t), (), []),
    "pareto": (lambda t: pareto.pareto(ENTRIES, "MoE, 2 of 8", t), (NATS, FLOPS), [e.ce.mean() for e in ENTRIES]),
    "routers": (lambda t: router_comparison.routers(RUNS, KINDS, t), (
        "validation loss\n(nats", "(1 is an even load)", "dropped\n(share)", "(milliseconds)"), [3, 3.1, 3.2, 900]),
    "sparsity": (lambda t: sparsity_comparison.losses({"SET": [SPARSE]}, [BIG, TINY], "bytes", t), (
        "bytes",), [100, 200, 400, 3.1, 2.1, 3.0, 3.2, 2.6]),
    "time": (lambda t: step_time.time_by_part(PLACES, ("attention", "experts", "rest"), t), (
        "a training step (%), of 100.0 ms", "forward pass of each layer (milliseconds)", "backward pass"), [60, 25, 5]),
    "weight maps": (lambda t: choices.weight_maps(WEIGHT_TE | {"three": np.eye(2, 3)}, "a ", t),
                    ("expert", "weight of the expert"), WEIGHT_TE["two"][1, :2]),
    "expert loads": (lambda t: choices.expert_loads(np.array([[3, 0], [2, 1], [1, 2]]), t), ("steps", "expert", "load"),
                     [0, 1, 2, 3]),
    "router losses": (lambda t: choices.router_losses(
        RUNS | {"dense": RUNS["hash"]}, KINDS | {"dense": "causal"}, "gshard", t), ("validation loss",),
                      [3, 3.1, 1, 1.2]),
    "translated weights": (lambda t: choices.translated_weights({"a": (0.01, 0.02), "b": (0.1, 0.1)}, t), (
        "weight of the balance loss",), [0.01, 0.02, 0.1]),
    "step memory": (lambda t: downsides.step_memory({"a": {"x": 1e6, "y": 2e6}, "b": {"x": 4e6, "y": 0}}, t),
                    ("kept during a training step (MB)",), [1, 2, 4]),
    "savings": (lambda t: downsides.savings({"x": [4, 8], "y": [3, np.nan], "z": [2, 6]}, {"a": 0.25, "b": 0.1}, t), (
        "times fewer FLOPs",), [4, 8, 3, 2, 6]),
    "relative costs": (lambda t: downsides.relative_costs(COSTS, ("small", "MoE", "large"), t), (), [0.5]),
    "alarms": (lambda t: downsides.alarms(RAISED, ["collapse", "dead", "drops"], t), (), []),
    "slots": (lambda t: dropping.slots(np.array([5, 2, 3]), 3, t), ("expert", "assignments"), [1, 2, 3]),
    "lost": (lambda t: dropping.lost_assignments(LOST, t), ("position (characters)", "sequence"), [0, 1, 2]),
    "drops and work": (lambda t: dropping.drops_and_work(STEPS, {"a": CE.T, "b": CE.T / 2}, {"a": CE.T + 1}, t),
                       ("capacity factor", "dropped (%)", "useful row"), [STEPS, 350, 225, 112.5, 4.5, 3.25]),
    "extra losses": (lambda t: dropping.extra_losses({"a": POINTS, "b": POINTS + 5}, t), (
        "dropped gates", "extra loss (nats)"), [POINTS[:, :2], POINTS[:, :2] + 5]),
    "leaks": (lambda t: dropping.leaks({"a": np.array([0.0, 3.0]), "b": np.array([20.0, 0.5])}, t), (
        "position (characters)", "percentage points"), [3.0, 20.0, 0.5, 0.01, 100]),
    "loss matrix": (lambda t: dropping.loss_matrix(CE_NTF, ["0.5", "1"], ["1", "2"], t),
                    ("in evaluation", "in training", NATS), [3.1, 2.1, 2.6, 2.2]),
    "score gradients": (lambda t: gradients.score_gradients({"raw": DLOGIT_TE, "balance": DLOGIT_TE / 100}, CHOSEN_TE,
                                                            "ab", t), ("expert",), [2 ** 0.5, -0.5 ** 0.5]),
    "probabilities": (lambda t: one_batch.probabilities(PROB_TE, EXPERT_TK, "ab", t), ("probability of each expert",),
                      [0.6, 0.1, 0.3]),
    "queues": (lambda t: one_batch.queues([[0, 1, 2], [], [1]], 2, "abc", t), ("place in the queue",), []),
    "errors": (lambda t: gradients.errors_by_step([0.1, 0.01], {"central": [1e-4, 1e-6], "complex": [1e-5, 0.0]}, t),
               ("step h", "relative error"), [0.1, 0.01, 1e-4, 1e-6, 1e-5, gradients.BOTTOM]),
    "flips": (lambda t: gradients.flips(np.array([0.1, 0.01]), ERRORS, FLIPPED, t),
              ("step h", "error / typical gradient"), [ERRORS, 0.1 * 10 ** 0.25, 0.01 * 10 ** -0.25]),
    "turned score": (lambda t: gradients.turned_score(STEPS, GATE_SE, np.array([5.0, 5.0, 2.0]), "score of 2", t), (
        "score of 2", "gates of the token", "loss of the token"), [STEPS, 5, 2, 0.75, 0.5]),
    "load bands": (lambda t: load_balancing.load_bands(STEPS, {"one": LOAD, "two": LOAD[::-1]}, t),
                   ("training steps",), LOAD[:, :, 0]),
    "busiest experts": (lambda t: load_balancing.busiest_experts({"a": CE, "b": CE + 1}, t),
                        ("steps", "multiples of an even load"), [3.5, 2.25, 1.5, 4.5]),
    "pushes": (lambda t: load_balancing.pushes(LOAD[0, 0], np.array([-0.5, 0.1, 0.4]), STEPS / 40, STEPS, t),
               ("load (share", "minus gradient", "crowded expert"), [LOAD[0, 0], STEPS / 40, STEPS]),
    "biases": (lambda t: load_balancing.biases(LOAD[0], LOAD[1], t), ("even load", "bias"), [LOAD, 1]),
    "remedies": (lambda t: load_balancing.remedies(BUSIEST, t), ("busiest", NATS), [*BUSIEST.values(), 1]),
    "text by expert": (lambda t: load_balancing.text_by_expert({"local": LOAD, "global": LOAD[::-1]}, "abc", t),
                       ("expert", "share of the domain's assignments"), LOAD),
    "experts used": (lambda t: machines.experts_used([1, 2, 4], [2, 3.5, 5.5], ([2, 3, 4], [2, 4, 7]), FOUND, 8, t),
                     ("batch size", "experts of a layer"), [*FOUND.values(), 3.5, 5.5, 7, 8]),
    "speeds": (lambda t: machines.speeds([1, 2, 4], {"a": ([100, 200, 300], [True] * 3), "b": (
        [100, 120, 320], [True, True, False]), "c": ([40, 80, 100], [True, False, False])}, t),
               ("tokens per second", "batch size"), [100, 200, 300, 120, 320, 40, 80, 2.5, 1.5, 3.2]),
    "travel times": (lambda t: machines.travel_times({"fast": 1e3, "slow": 4e3}, {"fine": 600, "wide": 2000}, t),
                     ("width F", "time to travel"), [1e3 / 512, 4e3 / 512, 600, 1e3 / 600, 4e3 / 600, 2000, 0.5]),
    "step times": (lambda t: machines.step_times(MODELS, t), ("(GFLOP", "(milliseconds)"), list(MODELS.values())),
    "information": (lambda t: specialization.information(LOAD[0], LOAD[1:], LOAD[0] / 8, [1, 2, 3], "abc", t), (
        "nats",), [LOAD, LOAD[0] / 8]),
    "characters": (lambda t: specialization.characters({"one": ("abc", LOAD[0]), "two": ("abc", LOAD[1])}, 0.5, t), (
        "expert", "share of the character's"), LOAD),
    "domains": (lambda t: specialization.domains({"one": LOAD[0], "two": LOAD[1]}, "abc", t), (
        "expert (dotted: an even share)", "share of the domain's assignments"), [LOAD, 1 / 3]),
    "settling": (lambda t: specialization.settling(STEPS, LOAD[0], LOAD[1, 1:], 0.25, t), (
        "optimizer steps", "share of the final choices", "share of the choices"), [LOAD[0], LOAD[1, 1:], 0.25]),
    "damage": (lambda t: specialization.damage(LOAD[0], LOAD[1], t), ("switched off", "rise of the loss"), LOAD[0]),
    "wrong experts": (lambda t: specialization.wrong_experts(LOAD[0, 0], LOAD[1], np.zeros(3), t), (
        "rise of the loss",), [LOAD[0, 0], LOAD[1], LOAD[1].mean(axis=1)]),
    "paths": (lambda t: paths.alluvial({"one": np.array([BEFORE_T, AFTER_T])}, 2, t), ("share of the tokens",), [0.75]),
    "races": (lambda t: races.races(PANELS, "abc", t, highest=3.5), ("steps", "seconds", NATS), [STEPS, 60, CE, 3.5]),
    "gaps": (lambda t: races.gaps(GAPS, t), ("nats per token",), [*GAPS.values(), [0.01, -0.2, 0]]),
    "effective sizes": (lambda t: races.effective_sizes([100, 200, 400], FAMILY, [3.1, 2.25, 2.25], MOES, t), (
        "parameters of a dense model", NATS), [FAMILY, [100, 200, 400], 2.1, 2.25, MOES["x"], 1.9, 3.3]),
    "training": (lambda t: races.training({"MoE": (CE[0], STEPS, CE[1]), "dense": (CE[1], STEPS, CE[0])}, {"best": 0.5},
                                          t), ("steps", NATS), [STEPS, CE, 0.5]),
    "seed lines": (lambda t: races.seed_lines({"a": CE[:, 0], "b": CE[:, 2]}, t), ("(nats per token)",), [
        CE[:, 0], CE[:, 2], 3.5, 1.5]),
    "used weights": (lambda t: sparse_models.used_weights({"dense": (ALL, 1), "MoE": (USED, E)}, ["a", "b"], t),
                     ("a square is a weight", "token a"), []),
    "twins": (lambda t: sparse_models.twins({"MoE": (1e6, 3e6), "dense": (4e6, 0)}, {
        "MoE": {"head": 1e6, "experts": 2e6}, "dense": {"dense": 8e6}}, t),
              ("parameters (millions)", "forward FLOPs per token (millions)"), [1, 3, 4, 2, 8]),
    "dots": (lambda t: sparse_models.dots("abc", {"x": [1, 2, np.nan], "y": [3, 1, 4]}, "pqr", "times", t),
             ("times",), [1, 2, 3, 4]),
    "masked weights": (lambda t: cutting.masked_weights(W_DF, {"one": W_DF < 2, "two": W_DF > 0, "three": W_DF > 2}, t),
                       ("input", "output", "size of the weight"), [1, 2, 3, 4, 0]),
    "deaths": (lambda t: cutting.deaths(np.array([0.25, -0.5]), t), ("neuron", "per 1,000 tokens"), [250, -500]),
    "loss by sparsity": (lambda t: cutting.loss_by_sparsity([0.5, 0.9], CE_NS, {"before": 1.5}, t), (
        NATS, "zeros (share"), [0.5, 0.9, 2.1, 3.2, 2.5, 3.7, 1.5, 2.2, 3.4]),
    "cuts": (lambda t: cutting.cuts(CUT, 1.25, t), (NATS, "parameters that are left", "FLOPs per token that NumPy"), [
        *CUT["heads"][1:], 1, 1.25]),
    "film": (lambda t: sparse_training.film({"SET": MASK_NDF, "RigL": MASK_NDF[::-1]}, [0, 5, 10, 15], t),
             ("SET", "RigL"), [0, 1, 2, 3, 4]),
    "seeds": (lambda t: sparse_training.seeds({"a": CE[0], "b": CE[1]}, "a", t), ("nats per token",), [CE, 2.5, 7 / 3]),
    "ways": (lambda t: sparse_training.ways({"x": ("experts", (1.0, 0.4), "less"), "y": ("z", (0.8, 5), "")}, "ab", t),
             ("share of the dense model",), [0.85 * 0.4, 0.85 * 0.8]),
    "block": (lambda t: block.transformer_block(ROUTED, 1, "cat", BLOCK, t), (), []),
    "dispatch": (lambda t: dispatch_combine.dispatch_combine(ROUTED, "cat", t), (), []),
    "gradient map": (lambda _: gradients.gradient_map(), (), []),
    "cost shares": (lambda _: cost_shares.cost_shares(list(RECORDS.values())[1:3]), ("share (%)",), []),
}
"""Name -> (title -> Figure, words that stand on its axes, numbers that are drawn).  The last two know their titles."""

ELEVEN = {
    "load over time": lambda: expert_load.load_over_time(STEPS, np.full((3, 1, 11), 1 / 11), ""),
    "load by domain": lambda: expert_load.load_by_domain({"": shares(1, 1, 11)}, ("english",), ""),
    "colored text": lambda: coloured_text.coloured_text([("", "a" * 11, range(11))], 11, ""),
    "slots": lambda: dropping.slots(np.arange(11), 5, ""),
    "score gradients": lambda: gradients.score_gradients({"raw": np.ones((1, 11))}, np.ones((1, 11), bool), "a", ""),
    "queues": lambda: one_batch.queues([[]] * 11, 1, "", ""),
    "load bands": lambda: load_balancing.load_bands(STEPS, {"one": np.full((1, 3, 11), 1 / 11)}, ""),
    "text by expert": lambda: load_balancing.text_by_expert({"one": shares(1, 2, 11)}, "ab", ""),
    "paths": lambda: paths.alluvial({"one": np.arange(11)[None]}, 11, ""),
    "used weights": lambda: sparse_models.used_weights({"MoE": (np.ones((1, 3, 1, 11), bool), 11)}, "a", ""),
}
"""Pictures in which experts are told apart, with eleven of them."""


def drawn(name):
    """The axes of a picture, without its color scale."""
    return [axis for axis in TITLED[name][0]("title").axes if axis.get_label() != "<colorbar>"]


def words(texts):
    """What texts say: those of an axis, a legend's, or the names of its ticks."""
    return [text.get_text() for text in texts]
