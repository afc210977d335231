"""The costs of a model in words and tables: `sheet` as text."""

import textwrap

WIDTH, WIDEST = 118, 120
"""Columns of a line of words; of any line."""

SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


AGAIN = 1.1
"""A saving that grows by more than this with more texts is worth a word."""


def report(sheet):
    """All of a `sheet.sheet` as text, with what was counted and measured if it is there; the verdict last."""
    measured = {"counted": of_counted, "step": of_step, "routing": of_routing}
    blocks = [f"{textwrap.fill(sheet['name'], WIDTH)}\n{textwrap.fill(sheet['shape'], WIDTH)}",
              of_parameters(sheet["parameters"]) + of_published(sheet.get("published")), of_parts(sheet),
              of_memory(sheet), of_decoding(sheet), of_exchange(sheet["exchange"]),
              of_conventions(sheet), *(words(sheet[name]) for name, words in measured.items() if name in sheet),
              verdict(sheet)]
    return "\n\n".join(block for block in blocks if block)


def quantity(n, unit=""):
    """A number with three digits, in units of thousands: 46.7 G; of a million P and more as a power of ten."""
    n = float(f"{n:.3g}")  # first, since 999.6 is 1 k
    if abs(n) >= 1e21:
        return f"{n:.3g} {unit}".rstrip()
    for scale, letter in SCALES:
        if abs(n) >= scale:
            return f"{n / scale:.3g} {letter}{unit}" if n < 1000 * scale else f"{n / scale:.0f} {letter}{unit}"
    return f"{n:.3g} {unit}".rstrip()


def whole(n):
    """A number without its fraction, in full; from 10^15 on, which no model has, with three digits."""
    return f"{n:,.0f}" if abs(n) < 1e15 else quantity(n)


def of_parameters(counted):
    """Total, and the three counts of what is active."""
    lines = {"total": "all", "active_incl_all_embeddings": "active: that one token uses",
             "active_excl_input_embedding": "  without the input embedding",
             "active_non_embedding": "  without embedding, positions and head"}
    return table([("parameters", "", "of all"), *((words, whole(counted[field]),
                                                   f"{counted[field] / counted['total']:.1%}")
                                                  for field, words in lines.items())])


def of_published(printed):
    """What the publishers print, with our count by their convention; empty if there is nothing."""
    if not printed:
        return ""
    active = f"active {printed['active']}"
    if printed["here"] is not None:
        with_ = "with " if printed["convention"] == "all embeddings" else ""
        active = f"{active} ({with_}{printed['convention']}; here {printed['here']:,})".replace(") (", "; ")
    said = [printed["total"], active if printed["active"] else None]
    words = f"published: {', '.join(filter(None, said))}, source: {printed['source']}"
    return "\n" + textwrap.fill(words, WIDTH)


def of_parts(sheet):
    """Where parameters and FLOPs are."""
    of_all = sheet["parameters"]
    rows = [("part", "parameters", "active", "share", "forward FLOPs a token", "share")]
    flops = sheet["forward_flops_per_token"]
    for row in sheet["parts"]:
        work = row["forward_flops_per_token"]
        share = row["active"] / of_all["active_incl_all_embeddings"]
        rows.append((row["part"], whole(row["total"]), whole(row["active"]), f"{share:.1%}", quantity(work),
                     f"{work / flops:.1%}"))
    rows.append(("together", whole(of_all["total"]), whole(of_all["active_incl_all_embeddings"]), "", quantity(flops),
                 ""))
    return (f"{table(rows)}{_of_idle_router(sheet['parts'])}\n"
            f"FLOPs: of texts of {sheet['context']:,} tokens, read at once, without drops and empty slots; training "
            "takes 3 times these\nactive: with its share of all that is active")


def _of_idle_router(rows):
    """That a router ran where there was nothing to choose, if it did."""
    names = {row["part"] for row in rows}
    if "router" not in names or "experts" in names:
        return ""
    return "\nrouter: with one dense block it has nothing to choose, but its product runs, so it is counted"


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
    dense = twin["decode_seconds"] if twin else [None] * len(sheet["decode"])
    cells = [_decoding_cells(row, sheet, times) for row, times in zip(sheet["decode"], dense, strict=True)]
    form = rest if experts == rest else f"{rest}, experts in {experts}"
    turn = sheet["turning_batch"]
    words = (f"from {turn:,} texts on it waits for FLOPs" if turn else
             "it waits for bytes whatever the number of texts: each reads a cache of its own")
    words += (f"\ntexts: written at the same time.{'  experts used: of a layer.' * bool(twin)}  memory: weights and "
              f"cache over the machine's;\nabove 100% they do not fit"
              f"{'.  dense: a dense model of equal size' * bool(twin)}")
    head = (f"decoding on {machine['words']}: texts of {sheet['context']:,} tokens, {form}, at the machine's peaks, "
            f"{'even routing, ' * bool(twin)}attention to the whole text")
    rows = [tuple(cells[0]), *(tuple(of_row.values()) for of_row in cells)]
    return f"{textwrap.fill(head, WIDTH)}\n{table(rows)}\n{words}" + (_of_offload(sheet) if twin else "")


def _decoding_cells(row, sheet, times):
    """Column -> its cell for a number of texts.  times: what a dense model of equal size takes longer; None: it is."""
    held = (sheet["memory"]["weights_as_said"] + row["cache_bytes"]) / sheet["machine"]["memory"]
    used = {"experts used": f"{row['distinct_experts']:.1f}"} if times else {}
    beside = {"dense: ms": f"{1e3 * times * row['seconds']:.3g}"} if times else {}
    return {"texts": str(row["texts"]), **used, "weights read": quantity(row["weight_bytes"], "B"),
            "cache read": quantity(row["cache_bytes"], "B"), "FLOPs": quantity(row["flops"]),
            "a byte": f"{row['intensity']:.1f}", "memory": f"{whole(100 * held)}%",
            "ms a step": f"{1e3 * row['seconds']:.3g}", "waits for": row["waits_for"],
            "tokens/s": whole(row["tokens_per_second"]), **beside}


def _of_offload(sheet):
    one = sheet["offload_half"][0]
    return (f"\nwith half of the experts in the host's memory a step of one text waits {1e3 * one:.3g} ms more for "
            "those that it fetches")


def of_exchange(exchange):
    """Experts on several devices; empty for a dense model."""
    if exchange is None:
        return ""
    return textwrap.fill(
        f"with the experts on {exchange['ranks']} devices each layer sends copies of a token to "
        f"{exchange['vectors']:.2f} experts, on {exchange['vectors_once']:.2f} other devices: "
        f"{quantity(exchange['bytes'], 'B')} in all layers, there and back, "
        f"{1e6 * exchange['link_seconds']:.3g} us on the links beside {1e6 * exchange['expert_seconds']:.3g} us of "
        "the experts' FLOPs, if routing is even", WIDTH)


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
    times = twin["decode_seconds"]
    listed = ", ".join(f"{t:.1f} with {row['texts']} text{'s' * (row['texts'] > 1)}"
                       for row, t in zip(sheet["decode"], times, strict=True))
    again = ("; with the most texts the dense model waits for FLOPs, and the MoE saves again"
             if times and times[-1] > AGAIN * min(times) else "")
    decoding = (f"A step of decoding takes this many times less time: {listed}. Texts use different experts, and all "
                f"that are used are read{again}. ") if listed else ""
    return textwrap.fill(
        f"What is saved: {twin['active_share']:.0%} of the parameters are active. Beside a dense model of equal size "
        f"its routed experts take {twin['expert_flops']:.1f} times fewer FLOPs, the whole model {twin['flops']:.1f} "
        f"times fewer, in training and in reading as well. {decoding}Its weights take as much memory as those of the "
        "dense model: nothing is saved. How good it is beside that dense model is another question (`compare`).", WIDTH)


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
    head = textwrap.fill(f"FLOPs of a training step of {shape}, counted product by product", WIDTH)
    text = (f"{head}\n{table(rows)}\ntogether {total:,}, {quantity(total / counted['tokens'])} a token")
    return text + (_of_rows(counted) if counted["layers"] else "")


def _of_rows(counted):
    dense = any(row["part"] == "dense" for row in counted["parts"]) and not any(
        row["part"] == "experts" for row in counted["parts"])
    rows = [(f"rows of {'the dense block' if dense else 'experts'} in layer", "chosen", "kept", "computed")]
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
            ("kept for the backward pass, by a group", quantity(of["activations"], "B"),
             quantity(of["activations_formula"], "B")),
            ("most at once", quantity(of["peak"], "B"), quantity(of["peak_formula"], "B"))]
    return table(rows)


def of_routing(layers):
    """What real routing does: experts touched, memory that misses, ranks that wait."""
    even, sizes = layers[0], layers[0]["texts"]
    rows = [("layer", *(f"{n} text{'s' * (n > 1)}" for n in sizes), "to fetch", "to others", "busiest device", "time")]
    rows += [(str(row["layer"]), *(f"{n:.2f}" for n in row["touched"]), f"{row['missed']:.0%}",
              quantity(row["sent"], "B"), f"{row['imbalance']:.2f}", f"{row['seconds'] / row['seconds_if_even']:.2f}")
             for row in layers]
    rows.append(("even routing, by formula", *(f"{n:.2f}" for n in even["touched_if_even"]),
                 f"{even['missed_if_even']:.0%}",
                 quantity(even["sent_if_even"], "B"), "1.00", "1.00"))
    rows.append(("even routing, random draws", *(f"{n:.2f}" for n in even["touched_by_lot"]), "", "", "", ""))
    return ("the run's own routing of held-out text: experts of a layer that a step of decoding uses, by texts\n"
            f"{table(rows)}\nto fetch: share of a text's uses of experts that are not in memory, which holds half of "
            f"them, the last used.\nto others: tokens' bytes that go to experts on another of the {even['ranks']} "
            "devices that share them.\nbusiest device: its tokens over the mean.  time: of the layer on them, over "
            "that of even shares")


def table(rows, left=(0,)):
    """Rows of cells as text in columns, the first row with a line below.  left: columns that stand at the left.

    A first cell for which there is no room on a line of WIDEST goes on below.
    """
    room = max(6, WIDEST - sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:]))
    rows = [(piece, *([""] * len(cells) if i else cells)) for name, *cells in rows
            for i, piece in enumerate(_broken(name, room))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _broken(cell, room):
    return [cell] if len(cell) <= room else textwrap.wrap(cell, room)
