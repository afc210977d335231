"""All costs of one model on one page, as a record that JSON can hold; `report` writes it as text."""

import math
from collections import Counter

from minimoe.cost import all_to_all, conventions, deployment, formula, memory, parts

MOST_RANKS = 8
"""Number of devices for the experts: the largest number up to this that divides the experts."""


def sheet(name, arch, context, machine, rest="bf16", experts=None, decodes=True, causal=True):
    """The record of an Architecture.  Units: FLOPs, bytes, seconds.

    Args:
        name: name of the model.
        arch: Architecture.
        context: tokens per sequence.
        machine: Machine.
        rest: format of the weights and the KV cache, see `memory.FORMATS`.
        experts: format of the experts' matrices; None: the same.
        decodes: whether it can generate token by token; if not, the record has nothing on decoding.
        causal: count the scores that a causal kernel computes; False: the masked ones too, as our attention does.
    """
    batches, experts = deployment.BATCHES if decodes else (), None if arch.dense else experts
    counted, work = parts.parameters(arch), flops_of_parts(arch, context, causal)
    resident = arch.n_routed_experts if arch.dense else arch.n_routed_experts // 2
    cache = [memory.FORMATS[rest].bytes(memory.kv_numbers(arch, tokens)) for tokens in (context, context + 1)]
    return {
        "name": name, "shape": shape(arch), "context": context, "parameters": counted.record(),
        "parts": part_rows(arch, work),
        "forward_flops_per_token": sum(work.values()), "scores": "causal" if causal else "all",
        "forward_flops_by_scores": {words: sum(flops_of_parts(arch, context, skips).values())
                                    for words, skips in (("causal", True), ("all", False))},
        "dense_twin": dense_twin(arch, batches, context, machine, rest, experts, causal),
        "memory": {
            "weights": {form: memory.weight_bytes(arch, form) for form in memory.FORMATS},
            "weights_as_said": memory.weight_bytes(arch, rest, experts), "formats": [rest, experts or rest],
            "training": {words: n * counted.total for words, n in memory.ADAM_BYTES.items()},
            "cache_per_token": cache[1] - cache[0], "cache_per_sequence": cache[0],
        },
        "bytes_read": {n: by_shown_name(arch, deployment.bytes_read(arch, n, context, rest, experts, rest))
                       for n in batches},
        "machine": machine._asdict(),
        "decode": [decode_row(arch, n, context, machine, rest, experts) for n in batches],
        "turning_batch": deployment.turning_batch(arch, machine, context, rest=rest, experts=experts, cache=rest),
        "offload_half": [deployment.offload_seconds(arch, machine, n, resident, rest, experts) for n in batches],
        "exchange": expert_parallelism(arch, machine, rest),
        "conventions": [{"name": words, "source": source, "training_flops_per_token": flops}
                        for words, source, flops in conventions.training_flops(arch, context)],
    }


def shape(arch):
    """An Architecture in one line, with defaults filled in."""
    heads = f"{arch.n_heads} heads"
    if arch.mla is not None:
        heads += f", latent attention of width {arch.mla.kv_lora_rank}"
    elif arch.kv_heads != arch.n_heads:
        heads += f", {arch.kv_heads} of keys and values"
    heads += "".join(f", {words} in {arch.attentions.count(kind)} of {arch.n_layers} layers" for kind, words in (
        ("window", f"attention to the last {arch.window or 0:,} tokens"), ("linear", "linear attention"))
        if kind in arch.attentions)
    moe, dense = arch.kinds.count("moe"), Counter({arch.dense_ffn_hidden: arch.kinds.count("dense")})
    if arch.dense and moe:
        dense[arch.expert_hidden + parts.shared_width(arch)] += moe
    blocks = [f"{_layers(n)} with a {arch.ffn_type} block of {width:,}" for width, n in dense.items() if n]
    if not arch.dense:
        shared = f" and {arch.n_shared_experts} shared" if arch.n_shared_experts else ""
        blocks.append(f"{_layers(moe)} with {arch.top_k} of {arch.n_routed_experts:,}{shared} {arch.ffn_type} experts "
                      f"of {arch.expert_hidden:,} per token")
    return (f"{arch.vocab:,} tokens in the vocabulary, width {arch.d_model:,}, {heads}, {arch.positions} positions; "
            f"{'; '.join(blocks)}; head {'tied to' if arch.tied_embeddings else 'separate from'} the embedding")


def _layers(n):
    return f"{n} layer{'s' * (n > 1)}"


def flops_of_parts(arch, context, causal=True):
    """Forward FLOPs per token of each part, when a sequence of `context` tokens is read in one pass.

    causal: count the scores that a causal kernel computes; False: the masked ones too, as our attention does.
    """
    work = Counter()
    for place, flops in formula.flops(arch, 1, context, causal=causal).items():
        work[place.part] += flops / context if place.way == "forward" else 0
    return by_shown_name(arch, {part: flops for part, flops in work.items() if flops})


def by_shown_name(arch, amounts):
    """Amounts of parts, name -> number, under their display names."""
    sums = Counter()
    for name, amount in amounts.items():
        sums[parts.shown_name(arch, name)] += amount
    return dict(sums)


def part_rows(arch, work):
    """Parameters, active parameters and forward FLOPs of each part, over all layers.

    work: part -> forward FLOPs per token.
    """
    total, active = Counter(), Counter()
    for part in parts.parts(arch):
        name = parts.shown_name(arch, part.name)
        total[name] += part.total
        active[name] += part.active
    names = [name for name in (*parts.NAMES, formula.SCORES) if total[name] or work.get(name)]
    return [{"part": name, "total": total[name], "active": active[name], "forward_flops_per_token": work.get(name, 0)}
            for name in names]


def decode_row(arch, batch, context, machine, rest, experts):
    """One decoding step.  For the arguments see `sheet`; batch: number of sequences."""
    step = deployment.decode_step(arch, batch, context, rest, experts, rest)
    seconds = step.seconds(machine)
    distinct = 0.0 if arch.dense else deployment.distinct_experts(arch.n_routed_experts, arch.top_k, batch)
    return {"batch_size": batch, "distinct_experts": distinct, "weight_bytes": step.weights,
            "cache_bytes": step.cache, "flops": step.flops, "intensity": step.intensity, "seconds": seconds,
            "tokens_per_second": batch / seconds,
            "bound_by": "bytes" if step.bytes / machine.bandwidth > step.flops / machine.flops else "FLOPs"}


def expert_parallelism(arch, machine, rest):
    """Experts on several devices with even routing, of one token in all layers, forward; None for a dense model.

    Args:
        arch: Architecture.
        machine: Machine, each device.
        rest: format of the weights; vectors are float32 with float32 weights, otherwise 2 bytes per number.

    The record has
        vectors: number of vectors that a token sends to other devices in a layer.
        vectors_once: the same if each device gets at most one, however many of the token's experts are there.
        bytes: bytes sent there and back.
        link_seconds: time to send them.
        expert_seconds: time of the experts' FLOPs.
    """
    E, K, layers = arch.n_routed_experts, arch.top_k, arch.kinds.count("moe")
    ranks = math.gcd(MOST_RANKS, E)
    if E < 2 or arch.soft_slots:
        return None
    sent = layers * 2 * (4 if rest == "float32" else 2) * arch.d_model  # vectors are not quantized, unlike weights
    vectors, once = (all_to_all.expected_vectors(E, K, ranks, once) for once in (False, True))
    work = 2 * sum(part.products for part in parts.parts(arch) if part.name == "experts")
    return {"ranks": ranks, "vectors": vectors, "vectors_once": once, "bytes": sent * vectors,
            "link_seconds": sent * vectors / machine.link, "expert_seconds": work / machine.flops}


def dense_twin(arch, batches, context, machine, rest, experts, causal=True):
    """How many times more a dense model of equal size costs, in which every token uses every expert.

    None for a model with no experts to leave out.  For the arguments see `sheet`; batches: batch sizes.

    The record has
        active_share: active parameters over all.
        expert_flops: FLOPs of the experts, the dense model's over its own.
        flops: the same for the whole model.
        decode_seconds: the same for the time of a decoding step, for each batch size.
    """
    if arch.n_routed_experts < 2:
        return None
    E, K = arch.n_routed_experts, arch.top_k
    work = flops_of_parts(arch, context, causal)
    whole, of_experts = sum(work.values()), work["experts"]
    twin = whole - of_experts + of_experts * E / K
    extra = of_experts * (E / K - 1)
    times = []
    for n in batches:
        step = deployment.decode_step(arch, n, context, rest, experts, rest)
        all_read = deployment.decode_step(arch, n, context, rest, experts, rest, distinct=E)
        times.append(all_read._replace(flops=all_read.flops + n * extra).seconds(machine) / step.seconds(machine))
    counted = parts.parameters(arch)
    return {"active_share": counted.active / counted.total, "expert_flops": E / K, "flops": twin / whole,
            "decode_seconds": times}
