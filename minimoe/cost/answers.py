"""The command `cost`: for which models, on which machine, and in which form."""

import json
from typing import NamedTuple

import numpy as np

from minimoe import terminal
from minimoe.config import describe
from minimoe.cost import deployment, measured, ours, published, quantities, report, sheet
from minimoe.generation import sampling
from minimoe.sparsity import savings

PUBLISHED_CONTEXT, MOST_HELD_OUT = 2048, 64
"""Tokens per sequence for published models; number of sequences for statistics of a run's routing."""

UNITS = {"bandwidth": "B/s", "flops": "FLOP/s"}
"""Numbers of a machine that the user can set -> unit."""

SETTING_OPTIONS = ("context", "machine", *UNITS, "format", "expert_format")
"""Options that describe where and how a model is used."""


class Setting(NamedTuple):
    """Where and how a model is used.

    machine: Machine.
    context: tokens per sequence; None is the default.
    rest: format of the weights and the KV cache, see `memory.FORMATS`.
    experts: format of the experts' matrices; None: the same.
    """

    machine: deployment.Machine
    context: int | None
    rest: str
    experts: str | None


def setting(options, ours):
    """The Setting that the command's options describe, with defaults for our models or for published ones.

    Raises ValueError for impossible numbers.
    """
    if options.context is not None and options.context < 1:
        raise ValueError(f"--context {options.context}: must be 1 or more")
    given = {name: getattr(options, name) for name in UNITS if getattr(options, name) is not None}
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"--{name} {value}: must be a finite number above 0")
    machine = deployment.MACHINES[options.machine or ("ddr5" if ours else "h100")]
    numbers = " and ".join(f"{name} {quantities.short(value, UNITS[name])}" for name, value in given.items())
    words = f"{machine.words}, but {numbers} as given" if given else machine.words
    return Setting(machine._replace(words=words, **given), options.context,
                   options.format or ("float32" if ours else "bf16"), options.expert_format)


def check_of_use(options, models):
    """Raises ValueError for a SETTING_OPTION where only parameters are shown, and no figure is drawn."""
    several, given = len(models) > 1, [name for name in SETTING_OPTIONS if getattr(options, name) is not None]
    if given and options.figure is None and (several or (models and options.json)):
        shown = "several models" if several else "the counts of --json"
        raise ValueError(f"--{given[0].replace('_', '-')} has no effect on {shown}; it is for a picture: --figure")


def parameter_counts(models, as_json, with_keys=False, detail=False):
    """Parameters of several models, as JSON or as a table.

    Args:
        models: list of Model.
        as_json: whether as JSON.
        with_keys: whether the table has the names that --model accepts.
        detail: whether it has every digit.
    """
    counts = [published.counts(model) for model in models]
    if as_json:
        return json.dumps(counts, indent=2)
    rows = [("--model" if with_keys else "name", "all", "active", "no input\nembedding", "no\nembeddings",
             "layers", "experts")]
    for model, (name, *numbers) in zip(models, (count.values() for count in counts), strict=True):
        rows.append((model.key if with_keys else name, *map(quantities.full if detail else quantities.short, numbers),
                     str(model.arch.n_layers), _experts(model.arch)))
    notes = ("all, active: parameters; those of one token, also without embeddings. +: shared experts."
             + " Every digit: --detail" * (not detail))
    return f"{terminal.table(rows)}\n\n{terminal.fill(notes)}"


def _experts(arch):
    if arch.dense:
        return "-"
    top_k, routed, shared = (str(n) if n < 10_000 else quantities.short(n)
                             for n in (arch.top_k, arch.n_routed_experts, arch.n_shared_experts))
    return f"{top_k} of {routed}" + f" + {shared}" * (arch.n_shared_experts > 0)


def published_record(model, setting):
    """The record of a Model, published or from a file.  Raises ValueError for a context that is too long for it."""
    longest = model.arch.ctx
    if setting.context is not None and longest is not None and setting.context > longest:
        raise ValueError(f"--context {setting.context}: {model.name} reads {longest} tokens at most")
    context = setting.context or min(PUBLISHED_CONTEXT, longest or PUBLISHED_CONTEXT)
    record = sheet.sheet(model.name, model.arch, context, setting.machine, setting.rest, setting.experts)
    return record | ({"published": published.printed(model)} if model.published else {})


def our_record(config, train_config, setting, params=None, streams=None):
    """The record of a model of ours, with what was counted and measured.

    Args:
        config: ModelConfig.
        train_config: TrainConfig, of the training step that is counted.
        setting: Setting.
        params: of a trained model, see `measured.counted_step`.
        streams: the text that it was trained on.
    """
    context = setting.context or config.max_sequence
    if context > config.max_sequence:
        raise ValueError(f"--context {context}: the model reads max_sequence = {config.max_sequence} tokens at most")
    arch = ours.architecture(config)
    name = "a dense model" if arch.dense else f"an MoE, {config.top_k} of {config.n_experts}"
    record = sheet.sheet(name, arch, context, setting.machine, setting.rest, setting.experts,
                         decodes=sampling.causal(config), causal=False)
    batch = train_config.batch, train_config.sequence, train_config.groups, params, streams
    layers = _behind_router(config) if arch.dense and config.moe_layers else describe.describe_layers(config)
    return record | {"shape": f"{record['shape']}; {layers}", "counted": measured.counted_step(config, *batch),
                     "step": measured.held_in_step(config, train_config)}


def _behind_router(config):
    """The layers of a dense model that runs through the code of routed layers."""
    room = "dropless" if config.capacity_factor is None else f"capacity factor {config.capacity_factor:g}"
    return (f"router {config.router} in {len(config.moe_layers)} layers, with nothing to choose, {room}; auxiliary "
            f"losses: {describe.describe_losses(config)}")


def run_record(state, text, setting, ranks):
    """The record of a run, with the costs of how it routes the held-out text, layer by layer, if it has a router.

    Args:
        state: TrainState of the run's checkpoint.
        text: Corpus that it was trained on.
        setting: Setting.
        ranks: devices that the experts are spread over; None is the default.
    """
    record = our_record(state.model_config, state.train_config, setting, state.params, text.train)
    config = state.model_config
    if not config.moe_layers or config.n_experts == 1 or not sampling.causal(config):
        return record  # one expert is a dense model; a model that cannot generate has no decoding steps
    tokens_BS = _held_out(text, state.train_config.sequence)
    return record | {"routing": measured.routing_costs(state.params, config, tokens_BS, ranks, setting.machine)}


def _held_out(text, length):
    """Equally many sequences of each domain, from the start of the held-out text: [B, S]."""
    each = min(max(1, MOST_HELD_OUT // len(text.domains)), *(len(stream) // length for stream in text.held_out))
    return np.concatenate([stream[:each * length].reshape(each, length) for stream in text.held_out])


def answer(record, as_json, detail=False):
    """A record as JSON or as text.  detail: see `report.report`."""
    masks = savings.words(record["sparse"]) if "sparse" in record else ""
    return json.dumps(record, indent=2) if as_json else report.report(record, detail, masks)
