"""The costs of a model as text and tables: the record of `sheet.sheet`, as wide as the terminal."""

from minimoe import terminal
from minimoe.cost import quantities

BOUND = {"bytes": "memory", "FLOPs": "compute"}
"""What a step is bound by: value in a record -> words."""

COUNTED = {"all embeddings": "all embeddings", "without the input embedding": "all but the input embedding",
           "no embeddings": "no embeddings"}
"""What a publisher's count of active parameters counts: convention -> words."""

NO_DECODING = "it cannot generate token by token: its router needs the tokens to come"

AGAIN = 1.1
"""A saving that grows by more than this factor with the batch size is worth a sentence."""


def report(sheet, detail=False, masks=""):
    """A record as text: what is saved, parameters and memory.

    detail: whether all costs, and what was counted and measured if it is there.  masks: what they save, in words.
    """
    measured = {"counted": counted_table, "step": step_table, "routing": routing_table}
    blocks = [f"{terminal.fill(sheet['name'])}\n{terminal.fill(sheet['shape'])}", masks, saved_words(sheet),
              parameters_table(sheet["parameters"]) + published_words(sheet.get("published"))]
    if masks:
        blocks[1] += "\n" + terminal.fill("All numbers below count the zeros too.")
    if detail:
        blocks += [parts_table(sheet), memory_table(sheet), decoding_table(sheet), exchange_words(sheet["exchange"]),
                   conventions_table(sheet), *(words(sheet[name]) for name, words in measured.items() if name in sheet)]
    else:
        routing = ", the run's own routing" * ("routing" in sheet)
        blocks += [brief_words(sheet), terminal.fill("Part by part, every format and batch size, expert parallelism, "
                                                     f"the FLOPs by the papers' formulas{routing}: --detail")]
    return "\n\n".join(block for block in blocks if block)


def brief_words(sheet):
    """FLOPs, memory, and the first decoding step, in a line each."""
    rest, experts = sheet["memory"]["formats"]
    form = rest if experts == rest else f"{rest}, experts in {experts}"
    lines = [f"forward pass: {quantities.short(sheet['forward_flops_per_token'])} FLOPs per token; training takes 3 "
             "times as many",
             f"weights: {quantities.short(sheet['memory']['weights_as_said'], 'B')} in {form}", cache_words(sheet)]
    if sheet["decode"]:
        first = sheet["decode"][0]
        room = quantities.short(sheet["machine"]["memory"], "B")
        lines.append(f"decoding, batch size {first['batch_size']}, {sheet['context']:,} tokens of context: "
                     f"{1e3 * first['seconds']:.3g} ms per token at best, {BOUND[first['bound_by']]}-bound; computed "
                     f"for {sheet['machine']['words']}"
                     + f", whose {room} cannot hold its weights and KV cache" * (_held(first, sheet) > 1))
    else:
        lines.append(NO_DECODING)
    return terminal.fill("\n".join(lines), hanging="  ")


def parameters_table(counts):
    """The total, and the three counts of active parameters."""
    names = {"total": "all", "active_incl_all_embeddings": "active: that one token uses",
             "active_excl_input_embedding": "  without the input embedding",
             "active_non_embedding": "  without embedding, positions and head"}
    return terminal.table([("parameters", "", "of all"), *(
        (words, quantities.full(counts[key]), f"{counts[key] / counts['total']:.1%}") for key, words in names.items())])


def published_words(printed):
    """The counts that the publishers give, with our count by their convention; empty if there are none."""
    if not printed:
        return ""
    active = f"active {printed['active']}"
    if printed["here"] is not None:
        active += f", which counts {COUNTED[printed['convention']]} ({printed['here']:,} here)"
    counts = [printed["total"], active if printed["active"] else None]
    return "\n" + terminal.fill(f"published: {', '.join(filter(None, counts))}, source: {printed['source']}")


def parts_table(sheet):
    """The parameters and FLOPs of each part."""
    all_of_it, flops = sheet["parameters"], sheet["forward_flops_per_token"]
    rows = [("part", "parameters", "active", "share", "FLOPs/token", "share")]
    for row in sheet["parts"]:
        work = row["forward_flops_per_token"]
        share = row["active"] / all_of_it["active_incl_all_embeddings"]
        rows.append((row["part"], quantities.full(row["total"]), quantities.full(row["active"]), f"{share:.1%}",
                     quantities.short(work), f"{work / flops:.1%}"))
    rows.append(("together", quantities.full(all_of_it["total"]),
                 quantities.full(all_of_it["active_incl_all_embeddings"]), "", quantities.short(flops), ""))
    return "\n".join([
        terminal.table(rows), *_idle_router(sheet["parts"]),
        terminal.fill(f"FLOPs: of the forward pass of sequences of {sheet['context']:,} tokens, without drops and "
                      f"empty slots; training takes 3 times as many. {_scores_words(sheet)}"),
        terminal.fill("active: with its share of all active parameters")])


def _scores_words(sheet):
    """Which of the attention scores are counted, and what the other convention gives."""
    causal, all_of_them = (quantities.short(sheet["forward_flops_by_scores"][words]) for words in ("causal", "all"))
    if sheet["scores"] == "causal":
        return f"Scores: those that a causal kernel computes; with the masked ones {all_of_them} per token"
    return f"Scores: the masked ones too, as they run here; a causal kernel takes {causal} per token"


def _idle_router(rows):
    """A line about a router that ran although there was nothing to choose, if one did."""
    names = {row["part"] for row in rows}
    if "router" in names and "experts" not in names:
        yield terminal.fill("router: with one dense block it has nothing to choose, but its product runs, so it is "
                            "counted")


def memory_table(sheet):
    """Bytes of weights, of training and of the KV cache."""
    held = sheet["memory"]
    rows = [("weights in", *held["weights"]), ("", *(quantities.short(n, "B") for n in held["weights"].values()))]
    formats = " as ".join(f"in {words}" for words in held["training"])
    training = quantities.short(max(held["training"].values()), "B")
    return "\n".join([
        terminal.table(rows),
        terminal.fill(f"training: {training} {formats}, with gradients and Adam's two moments, without activations"),
        terminal.fill(cache_words(sheet))])


def cache_words(sheet):
    """Bytes of the KV cache."""
    held = sheet["memory"]
    per_token, per_sequence = (quantities.short(held[f"cache_per_{what}"], "B") for what in ("token", "sequence"))
    more = "" if _keeps_all(sheet) else "further "
    return f"KV cache: {per_token} per {more}token, {per_sequence} per sequence of {sheet['context']:,} tokens"


def _keeps_all(sheet):
    """Whether the KV cache has every token in every layer: no window is full, and no state has a fixed size."""
    return sheet["memory"]["cache_per_sequence"] == sheet["context"] * sheet["memory"]["cache_per_token"]


def decoding_table(sheet):
    """One decoding step, by batch size; or that the model cannot decode."""
    if not sheet["decode"]:
        return terminal.fill(NO_DECODING)
    twin, turn = sheet["dense_twin"], sheet["turning_batch"]
    rest, experts = sheet["memory"]["formats"]
    dense = twin["decode_seconds"] if twin else [None] * len(sheet["decode"])
    cells = [_decoding_cells(row, sheet, times) for row, times in zip(sheet["decode"], dense, strict=True)]
    form = rest if experts == rest else f"{rest}, experts in {experts}"
    bound = (f"compute-bound from a batch of {turn:,} sequences on" if turn else
             "memory-bound at every batch size: each sequence reads its own KV cache")
    return "\n".join([
        terminal.fill(f"decoding on {sheet['machine']['words']}: sequences of {sheet['context']:,} tokens, {form}, at "
                      f"the machine's peaks, {'even routing, ' * bool(twin)}attention to "
                      + ("the whole sequence" if _keeps_all(sheet) else "what each layer keeps of it")),
        terminal.table([tuple(cells[0]), *(tuple(row.values()) for row in cells)]),
        bound,
        terminal.fill("batch: sequences that are decoded at the same time.  memory: weights and cache over the "
                      "machine's; above 100% they do not fit."
                      + "  experts used: in a layer.  dense: a dense model of equal size." * bool(twin)),
        *_offload(sheet)])


def _decoding_cells(row, sheet, times):
    """Column -> its cell for a batch size.  times: how many times longer a dense model of equal size takes; or None."""
    used = {"experts used": f"{row['distinct_experts']:.1f}"} if times else {}
    twin = {"dense: ms": f"{1e3 * times * row['seconds']:.3g}"} if times else {}
    return {"batch": str(row["batch_size"]), **used, "weights read": quantities.short(row["weight_bytes"], "B"),
            "cache read": quantities.short(row["cache_bytes"], "B"), "FLOPs": quantities.short(row["flops"]),
            "FLOPs/byte": f"{row['intensity']:.1f}", "memory": f"{quantities.full(100 * _held(row, sheet))}%",
            "ms/step": f"{1e3 * row['seconds']:.3g}", "bound by": BOUND[row["bound_by"]],
            "tokens/s": quantities.full(row["tokens_per_second"]), **twin}


def _held(row, sheet):
    """Weights and KV cache of a batch size over the machine's memory."""
    return (sheet["memory"]["weights_as_said"] + row["cache_bytes"]) / sheet["machine"]["memory"]


def _offload(sheet):
    if sheet["dense_twin"]:
        one = 1e3 * sheet["offload_half"][0]
        yield terminal.fill("with half of the experts in the host's memory a step of one sequence takes "
                            f"{one:.3g} ms more to fetch what it lacks")


def exchange_words(moved):
    """Experts on several devices; empty for a dense model."""
    if moved is None:
        return ""
    return terminal.fill(
        f"with the experts on {moved['ranks']} devices each layer sends copies of a token to {moved['vectors']:.2f} "
        f"experts, on {moved['vectors_once']:.2f} different devices: {quantities.short(moved['bytes'], 'B')} in all "
        f"layers, there and back, {1e6 * moved['link_seconds']:.3g} us on the links, compared with "
        f"{1e6 * moved['expert_seconds']:.3g} us of the experts' FLOPs, if routing is even")


def conventions_table(sheet):
    """Training FLOPs per token by the papers' formulas."""
    ours = sheet["conventions"][-1]["training_flops_per_token"]
    rows = [("training FLOPs per token, by", "", "of ours", "source")]
    rows += [(row["name"], quantities.short(row["training_flops_per_token"]),
              f"{row['training_flops_per_token'] / ours:.3f}", row["source"]) for row in sheet["conventions"]]
    return terminal.table(rows, left=(0, 3))


def saved_words(sheet):
    """How much this model saves by having few active parameters; empty for a dense model."""
    twin = sheet["dense_twin"]
    if twin is None:
        return ""
    times = twin["decode_seconds"]
    sizes = [row["batch_size"] for row in sheet["decode"]]
    listed = ", ".join(f"{t:.1f} at {'' if i else 'batch size '}{n}"
                       for i, (n, t) in enumerate(zip(sizes, times, strict=True)))
    again = ("; at the largest batch size the dense model is compute-bound, and the MoE saves again"
             if times and times[-1] > AGAIN * min(times) else "")
    decoding = (f"A decoding step is faster by a factor of {listed}. Sequences use different experts, and every expert "
                f"that is used must be read{again}. ") if listed else ""
    return terminal.fill(
        f"What is saved{' without the masks' * ('sparse' in sheet)}: {twin['active_share']:.0%} of the parameters are "
        f"active. Compared with a dense model of equal size, its routed experts take {twin['expert_flops']:.1f} times "
        f"fewer FLOPs and the whole model {twin['flops']:.1f} times fewer, in training and in prefill. {decoding}The "
        "MoE's weights take as much memory as those of the dense model: nothing is saved there. How the quality of the "
        "two compares is a different question (`compare`).")


def counted_table(counted):
    """FLOPs of a step that ran, part by part, and the rows of its experts."""
    total = counted["training_flops"]
    rows = [("part", "forward", "backward", "share", "by formula")]
    for row in counted["parts"]:
        both = row["forward"] + row["backward"]
        same = "the same" if both == row["formula"] else f"{row['formula']:,}: DIFFERS"
        rows.append((row["part"], f"{row['forward']:,}", f"{row['backward']:,}", f"{both / total:.1%}", same))
    groups = f", in {counted['groups']} groups" if counted["groups"] > 1 else ""
    shape = f"{counted['batch']} x {counted['sequence']} {counted['of']}{groups}"
    head = terminal.fill(f"FLOPs of a training step of {shape}, counted product by product")
    per_token = quantities.short(total / counted["tokens"])
    text = f"{head}\n{terminal.table(rows)}\ntogether {total:,}, {per_token} per token"
    return text + (f"\n\n{_expert_rows(counted)}" if counted["layers"] else "")


def _expert_rows(counted):
    names = {row["part"] for row in counted["parts"]}
    dense = "dense" in names and "experts" not in names
    rows = [(f"rows of {'the dense block' if dense else 'experts'} in layer", "chosen", "kept", "computed")]
    rows += [(str(row["layer"]), *(f"{row[name]:,}" for name in ("chosen", "kept", "run")))
             for row in counted["layers"]]
    chosen, kept = (sum(row[name] for row in counted["layers"]) for name in ("chosen", "kept"))
    wasted = counted["padding_flops"] / counted["training_flops"]
    dropped = terminal.fill(f"{1 - kept / max(chosen, 1):.1%} of the assignments had no room and were dropped; "
                            f"{wasted:.1%} of the FLOPs were spent on empty slots")
    return f"{terminal.table(rows)}\n{dropped}"


def step_table(held):
    """Bytes of a training step that ran."""
    rows = [("bytes of a training step", "measured", "by formula"),
            *((name, quantities.short(held[name], "B"), "") for name in ("parameters", "gradients", "moments")),
            ("activations for the backward pass, per group", quantities.short(held["activations"], "B"),
             quantities.short(held["activations_formula"], "B")),
            ("peak", quantities.short(held["peak"], "B"), quantities.short(held["peak_formula"], "B"))]
    return terminal.table(rows)


def routing_table(layers):
    """The effects of real routing: experts used, cache misses, waiting ranks."""
    even = layers[0]
    rows = [("layer", *(f"batch {n}" for n in even["batch_sizes"]), "to fetch", "to others", "busiest device", "time")]
    rows += [(str(row["layer"]), *(f"{n:.2f}" for n in row["touched"]), f"{row['missed']:.0%}",
              quantities.short(row["sent"], "B"), f"{row['imbalance']:.2f}",
              f"{row['seconds'] / row['seconds_if_even']:.2f}") for row in layers]
    rows.append(("even routing, by formula", *(f"{n:.2f}" for n in even["touched_if_even"]),
                 f"{even['missed_if_even']:.0%}",
                 quantities.short(even["sent_if_even"], "B"), "1.00", "1.00"))
    rows.append(("even routing, random draws", *(f"{n:.2f}" for n in even["touched_at_random"]), "", "", "", ""))
    notes = ["to fetch: share of a sequence's uses of experts that miss a cache of half of them (the last used)",
             f"to others: bytes of tokens that are sent to experts on other devices, of {even['ranks']} devices",
             "busiest device: its tokens over the mean", "time: of the layer on the devices, over that of even routing"]
    head = "how the run routes held-out text: experts of a layer that a decoding step uses, by batch size"
    return "\n".join([terminal.fill(head), terminal.table(rows), *map(terminal.fill, notes)])
