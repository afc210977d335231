"""The costs of a model in words and tables: `sheet` as text."""

import textwrap

SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def report(sheet):
    """All of a `sheet.sheet` as text, with what was counted and measured if it is there; the verdict last."""
    measured = {"counted": of_counted, "step": of_step, "routing": of_routing}
    blocks = [f"{sheet['name']}\n{textwrap.fill(sheet['shape'], 118)}", of_parameters(sheet["parameters"]),
              of_parts(sheet), of_memory(sheet), of_decoding(sheet), of_exchange(sheet["exchange"]),
              of_conventions(sheet), *(words(sheet[name]) for name, words in measured.items() if name in sheet),
              verdict(sheet)]
    return "\n\n".join(block for block in blocks if block)


def quantity(n, unit=""):
    """A number with three digits, in units of thousands: 46.7 G."""
    n = float(f"{n:.3g}")  # first, since 999.6 is 1 k
    for scale, letter in SCALES:
        if abs(n) >= scale:
            return f"{n / scale:.3g} {letter}{unit}" if n < 1000 * scale else f"{n / scale:.0f} {letter}{unit}"
    return f"{n:.3g} {unit}".rstrip()


def of_parameters(counted):
    """Total, and the three counts of what is active."""
    lines = {"total": "all", "active": "active: that one token uses",
             "active_without_input_embedding": "  without the input embedding",
             "active_without_embeddings": "  without embedding, positions and head"}
    return table([("parameters", "", "of all"), *((words, f"{counted[field]:,}",
                                                   f"{counted[field] / counted['total']:.1%}")
                                                  for field, words in lines.items())])


def of_parts(sheet):
    """Where parameters and FLOPs are."""
    whole = sheet["parameters"]
    rows = [("part", "parameters", "active", "share", "forward FLOPs a token", "share")]
    flops = sheet["forward_flops_per_token"]
    for row in sheet["parts"]:
        work = row["forward_flops_per_token"]
        rows.append((row["part"], f"{row['total']:,}", f"{row['active']:,}", f"{row['active'] / whole['active']:.1%}",
                     quantity(work), f"{work / flops:.1%}"))
    rows.append(("together", f"{whole['total']:,}", f"{whole['active']:,}", "", quantity(flops), ""))
    return (f"{table(rows)}\nFLOPs: of texts of {sheet['context']:,} tokens, read at once, without drops and empty "
            "slots; training takes 3 times these\nactive: with its share of all that is active")


def of_memory(sheet):
    """Bytes of weights, of training and of the cache."""
    of, context = sheet["memory"], sheet["context"]
    rows = [("weights in", *of["weights"]), ("", *(quantity(n, "B") for n in of["weights"].values()))]
    training = " as ".join(f"in {words}" for words in of["training"])
    return (f"{table(rows)}\ntraining: {quantity(max(of['training'].values()), 'B')} {training}, with gradients and "
            "Adam's two moments, activations not counted\n"
            f"keys and values: {quantity(of['cache_per_token'], 'B')} a token, "
            f"{quantity(context * of['cache_per_token'], 'B')} a text of {context:,} tokens")


def of_decoding(sheet):
    """One step of decoding, by the number of texts; that it cannot, if it cannot."""
    if not sheet["decode"]:
        return "it cannot write text token by token: it would need the tokens to come"
    machine, twin = sheet["machine"], sheet["dense_twin"]
    rest, experts = sheet["memory"]["formats"]
    rows = [("texts", "experts used", "weights read", "cache read", "FLOPs", "a byte", "memory", "ms a step",
             "waits for", "tokens/s", "dense: ms")]
    dense = twin["decode_seconds"] if twin else [None] * len(sheet["decode"])
    for row, times in zip(sheet["decode"], dense, strict=True):
        held = (sheet["memory"]["weights_as_said"] + row["cache_bytes"]) / machine["memory"]
        rows.append((f"{row['texts']}", f"{row['distinct_experts']:.1f}" if twin else "-",
                     quantity(row["weight_bytes"], "B"), quantity(row["cache_bytes"], "B"), quantity(row["flops"]),
                     f"{row['intensity']:.1f}", f"{held:.0%}", f"{1e3 * row['seconds']:.3g}", row["waits_for"],
                     f"{row['tokens_per_second']:,.0f}", f"{1e3 * times * row['seconds']:.3g}" if twin else "-"))
    form = rest if experts == rest else f"{rest}, experts in {experts}"
    turn = sheet["turning_batch"]
    words = (f"from {turn:,} texts on it waits for FLOPs" if turn else
             "it waits for bytes whatever the number of texts: each reads a cache of its own")
    words += ("\ntexts: written at the same time.  experts used: of a layer.  memory: weights and cache over the "
              "machine's;\nabove 100% they do not fit.  dense: a dense model of equal size")
    head = (f"decoding on {machine['words']}: texts of {sheet['context']:,} tokens, {form}, at the machine's peaks, "
            "even routing, attention to the whole text")
    return f"{textwrap.fill(head, 118)}\n{table(rows)}\n{words}" + (_of_offload(sheet) if twin else "")


def _of_offload(sheet):
    one = sheet["offload_half"][0]
    return (f"\nwith half of the experts in the host's memory a step of one text waits {1e3 * one:.3g} ms more for "
            "those that it fetches")


def of_exchange(exchange):
    """Experts on several devices; empty for a dense model."""
    if exchange is None:
        return ""
    return textwrap.fill(
        f"with the experts on {exchange['ranks']} devices a token sends {exchange['vectors']:.2f} vectors a layer to "
        f"others ({exchange['vectors_once']:.2f} if one to each): {quantity(exchange['bytes'], 'B')} in all layers, "
        f"there and back, {1e6 * exchange['link_seconds']:.3g} us on the links beside "
        f"{1e6 * exchange['expert_seconds']:.3g} us of the experts' FLOPs, if routing is even", 118)


def of_conventions(sheet):
    """Training FLOPs a token by the papers' formulas."""
    ours = sheet["conventions"][-1]["training_flops_per_token"]
    rows = [("training FLOPs a token, by", "", "of ours", "source")]
    rows += [(row["name"], quantity(row["training_flops_per_token"]), f"{row['training_flops_per_token'] / ours:.3f}",
              row["source"]) for row in sheet["conventions"]]
    return table(rows, left=(0, 3))


def verdict(sheet):
    """The claim that a model with few active parameters saves that much compute, for this model; empty for a dense."""
    twin = sheet["dense_twin"]
    if twin is None:
        return ""
    times = zip(sheet["decode"], twin["decode_seconds"], strict=True)
    listed = ", ".join(f"{t:.1f} with {row['texts']} text{'s' * (row['texts'] > 1)}" for row, t in times)
    decoding = (f"A step of decoding takes this many times less time: {listed}. Texts use different experts, and all "
                "that are used are read; with many texts a dense model waits for FLOPs first, and the MoE saves again. "
                ) if listed else ""
    return textwrap.fill(
        f"What is saved: {twin['active_share']:.0%} of the parameters are active. Beside a dense model of equal size "
        f"its routed experts take {twin['expert_flops']:.1f} times fewer FLOPs, the whole model {twin['flops']:.1f} "
        f"times fewer, in training and in reading as well. {decoding}Its weights take as much memory as those of the "
        "dense model: nothing is saved. How good it is beside that dense model is another question (`compare`).", 118)


def of_counted(counted):
    """FLOPs of a step that ran, part by part, and the rows of its experts."""
    total = counted["training_flops"]
    rows = [("part", "forward", "backward", "share", "by formula")]
    for row in counted["parts"]:
        both = row["forward"] + row["backward"]
        same = "the same" if both == row["formula"] else f"{row['formula']:,}: DIFFERS"
        rows.append((row["part"], f"{row['forward']:,}", f"{row['backward']:,}", f"{both / total:.1%}", same))
    groups = f", in {counted['groups']} groups" if counted["groups"] > 1 else ""
    shape = f"{counted['batch']} x {counted['sequence']} {counted['of']}{groups}"
    text = (f"FLOPs of a training step of {shape}, counted product by product\n{table(rows)}\n"
            f"together {total:,}, {quantity(total / counted['tokens'])} a token")
    return text + (_of_rows(counted) if counted["layers"] else "")


def _of_rows(counted):
    rows = [("rows of experts in layer", "chosen", "kept", "computed")]
    rows += [(str(row["layer"]), *(f"{row[name]:,}" for name in ("chosen", "kept", "run")))
             for row in counted["layers"]]
    chosen, kept = (sum(row[name] for row in counted["layers"]) for name in ("chosen", "kept"))
    wasted = counted["padding_flops"] / counted["training_flops"]
    return (f"\n\n{table(rows)}\n{1 - kept / max(chosen, 1):.1%} of the assignments had no room and were dropped; "
            f"{wasted:.1%} of the FLOPs went into empty slots")


def of_step(of):
    """Bytes of a training step that ran."""
    rows = [("bytes of a training step", "measured", "by formula"),
            *((name, quantity(of[name], "B"), "") for name in ("parameters", "gradients", "moments")),
            ("activations of a group, walked", quantity(of["activations"], "B"),
             quantity(of["activations_formula"], "B")),
            ("peak, traced", quantity(of["peak"], "B"), quantity(of["peak_formula"], "B"))]
    return table(rows)


def of_routing(layers):
    """What real routing does: experts touched, memory that misses, ranks that wait."""
    even, sizes = layers[0], layers[0]["texts"]
    rows = [("layer", *(f"{n} text{'s' * (n > 1)}" for n in sizes), "missed", "sent", "busiest device", "time")]
    rows += [(str(row["layer"]), *(f"{n:.2f}" for n in row["touched"]), f"{row['missed']:.0%}",
              quantity(row["sent"], "B"), f"{row['imbalance']:.2f}", f"{row['seconds'] / row['seconds_if_even']:.2f}")
             for row in layers]
    rows.append(("even, by formula", *(f"{n:.2f}" for n in even["touched_if_even"]),
                 f"{even['missed_if_even']:.0%}",
                 quantity(even["sent_if_even"], "B"), "1.00", "1.00"))
    rows.append(("even, drawn by lot", *(f"{n:.2f}" for n in even["touched_by_lot"]), "", "", "", ""))
    return ("the run's own routing of held-out text: experts of a layer that a step of decoding uses, by texts\n"
            f"{table(rows)}\nmissed: uses that a memory of half of the experts, the last used, has to fetch.\n"
            f"sent: to other devices, of {even['ranks']} that share the experts.  busiest device: its rows over the "
            "mean.\ntime: of the layer on them, over that of even shares")


def table(rows, left=(0,)):
    """Rows of cells as text in columns, the first row with a line below.  left: columns that stand at the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
