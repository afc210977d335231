"""Files at random: texts to train on, descriptions of models, checkpoints."""

import json

from minimoe.cost import published
from tests.benchmarks.attacks import attempt, kills

MODEL = {"name": "mine", "arch": {"vocab": 1000, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff_dense": 128}}
WRONG = (None, True, -1, 0, 1.5, float("nan"), float("inf"), 10**400, 10**30, "", "x", "x" * 10**5, [], {}, [[1]],
         {"a": {}})
NO_JSON = (b"", b"[" * 10**5, b"{}", b"[]", b"null", b"\xff", b'{"models": {}}', b"9" * 5000)


def attack(rng, folder, quick):
    """(case, problem or None) of each attempt."""
    where = kills.made(folder / "files")
    for i in range(15 if quick else 150):
        (where / "text").write_bytes(_text(rng))
        end = attempt.command(["train", "--text", "text", "--run", f"run{i}", "--preset", "tiny", "--n-steps", "1",
                               "--eval-batches", "1"], where)
        yield f"text {i}", attempt.problem(end, (0, 2))
        (where / "model.json").write_bytes(content := _json(rng))
        end = attempt.command(["cost", "--file", "model.json"], where)
        yield f"json {i} {content[:60]}", attempt.problem(end, (0, 2))
        (where / "run").mkdir(exist_ok=True)
        (where / "run/checkpoint.npz").write_bytes(rng.choice([b"", b"PK\3\4", b"PK\5\6" + bytes(18)]) + rng.randbytes(
            rng.choice((0, 1, 100, 10_000))))
        yield f"checkpoint {i}", attempt.problem(attempt.command(["doctor", "run"], where), (2,))


def _text(rng):
    pieces = ("the cat\n", "\r\n", "\ufeff", "\0", "\x1b[31m", "é", "\u202e", "𝕏", "\ud800", "\t", " ", "\x7f", "\x85",
              "\u2028")
    text = "".join(rng.choices(pieces, [20, *(rng.choice((0, 1)) for _ in pieces[1:])], k=rng.choice((0, 10, 1000))))
    return rng.choice((text.encode("utf-8", "surrogatepass"), text.encode("utf-16", "surrogatepass"),
                       text.encode("utf-8", "replace"), rng.randbytes(3000)))


def _json(rng):
    if rng.random() < 0.1:
        return rng.choice((*NO_JSON, rng.randbytes(100)))
    arch = dict(vars(rng.choice(list(published.models().values())).arch)) if rng.random() < 0.5 else dict(MODEL["arch"])
    for name in rng.sample([*arch, "mla", "n_experts"], rng.choice((1, 2))):
        arch[name] = rng.choice(WRONG)
    named = {"name": rng.choice(WRONG)} if rng.random() < 0.1 else {}
    text = json.dumps(MODEL | {"arch": arch} | named, default=vars)
    return text[:rng.randrange(len(text))].encode() if rng.random() < 0.05 else text.encode()
