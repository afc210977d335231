"""PyTorch as a contestant of `turns`: Mixtral of the transformers library, and a dense GPT of nanoGPT's shape."""

import contextlib
import math
import os
from dataclasses import replace

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the transformers library when it is imported

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from minimoe import config  # noqa: E402
from minimoe.training import corpus, data  # noqa: E402
from tests.benchmarks import ours  # noqa: E402
from tests.integration import other_models  # noqa: E402

VOCABULARY = 65
STEPS, WARM_UP, RATE = 2000, 100, 1e-3
"""nanoGPT's schedule on its CPU recipe; the learning rate ends at a tenth."""


class Block(nn.Module):
    """Attention, then a GELU layer four times as wide, each on a normalized copy and added to the stream; no biases."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.to_qkv, self.from_heads = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BSD):
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for part in self.to_qkv(self.norm1(x_BSD)).chunk(3, dim=2))
        mix = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BSD = x_BSD + self.from_heads(mix.transpose(1, 2).flatten(2))
        return x_BSD + self.down(functional.gelu(self.up(self.norm2(x_BSD))))


class GPT(nn.Module):
    """The dense GPT-2 block with learned positions and one table for embedding and head: 0.80 M parameters."""

    def __init__(self, sequence=64, layers=4, heads=4, width=128):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(sequence, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:  # what writes to the stream starts smaller, since 2L of them add up   [GPT-2, sec. 2.3]
                writes = name.endswith(("from_heads.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers) if writes else 0.02)

    def forward(self, tokens_BS, targets_BS):
        x_BSD = self.embed(tokens_BS) + self.place.weight[:tokens_BS.shape[1]]
        logit_BSV = functional.linear(self.norm(self.blocks(x_BSD)), self.embed.weight)
        return functional.cross_entropy(logit_BSV.flatten(0, 1), targets_BS.flatten())


def optimizer_of(net):
    """AdamW with its decay on matrices alone; of its three implementations the fused one, the fastest here."""
    weights = list(net.parameters())
    return torch.optim.AdamW([{"params": [w for w in weights if w.ndim > 1], "weight_decay": 0.1},
                              {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0}],
                             lr=RATE, betas=(0.9, 0.99), fused=True)


def learning_rate(step, steps=STEPS, rate=RATE):
    """Linear warm-up for a twentieth of the steps, then half a cosine.  step: 0 for the first."""
    warm_up = steps * WARM_UP // STEPS
    if step < warm_up:
        return rate * (step + 1) / (warm_up + 1)
    return rate * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2)


def trainer(net, loss, stream, batch, sequence, n_steps=STEPS, rate=RATE):
    """A function that takes one training step.  loss: of tokens_BS and targets_BS, a tensor."""
    optimizer, windows, steps = optimizer_of(net), stream.unfold(0, sequence + 1, 1), iter(range(10**9))
    net.train()

    def run():
        now = learning_rate(min(next(steps), n_steps), n_steps, rate)
        for group in optimizer.param_groups:
            group["lr"] = now
        piece = windows[torch.randint(len(windows), (batch,))]
        optimizer.zero_grad(set_to_none=True)
        loss(piece[:, :-1], piece[:, 1:].contiguous()).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return run


def mixtral_trainer(model_config, batch, sequence, experts):
    """A function that takes one training step of a Mixtral of this shape, on random tokens."""
    with_coef = replace(model_config, vocab_size=VOCABULARY, balance_coef=model_config.loss_coefs["balance"])
    net = other_models.mixtral(with_coef, experts)
    return trainer(net, lambda x_BS, y_BS: net(input_ids=x_BS, labels=y_BS, shift_labels=y_BS, use_cache=False).loss,
                   torch.randint(VOCABULARY, (100_000,)), batch, sequence)


def load():
    """Two threads; and one step of a tiny model, for what is set up at first use: it is no part of a model's memory."""
    torch.set_num_threads(2)
    for experts in ("eager", "grouped_mm"):
        mixtral_trainer(config.preset("tiny")[0], 4, 16, experts)()


@contextlib.contextmanager
def mixtral_step(batch, sequence, experts):
    """One training step of Mixtral, with its balance loss."""
    yield {"run": mixtral_trainer(ours.preset(batch, sequence)[0], batch, sequence, experts)}


@contextlib.contextmanager
def gpt_step(batch, sequence):
    """One training step of the GPT."""
    net = GPT(sequence)
    yield {"run": trainer(net, net, torch.randint(VOCABULARY, (100_000,)), batch, sequence)}


@contextlib.contextmanager
def gpt_race(path, seed=0, batch=12, sequence=64, steps=STEPS, rate=RATE):
    """nanoGPT's CPU recipe on a text, or one with other steps and rate: a step, and the loss on its held-out tenth."""
    torch.manual_seed(seed)
    text = data.build(corpus.from_files([path]), sequence)
    net = GPT(sequence)
    tokens_BS, targets_BS = (torch.from_numpy(part).long() for part in ours.pieces(text.held_out[0], sequence))

    def loss():
        with torch.inference_mode():
            parts = zip(tokens_BS.split(32), targets_BS.split(32), strict=True)
            return sum(net(x_BS, y_BS).item() * len(x_BS) for x_BS, y_BS in parts) / len(tokens_BS)

    yield {"run": trainer(net, net, torch.from_numpy(text.train[0]).long(), batch, sequence, steps, rate),
           "loss": loss}


@contextlib.contextmanager
def generated(n_tokens, context, experts, threads):
    """Greedy generation after one token, with the library's cache."""
    torch.set_num_threads(threads)
    fields = {"max_sequence": context, "vocab_size": VOCABULARY, "balance_coef": 0.0}
    net = other_models.mixtral(config.preset("shakespeare-cpu", fields)[0], experts).eval()
    net.config.output_router_logits = False  # only training asks for them
    prompt_BS = torch.ones(1, 1, dtype=torch.long)
    options = dict(max_new_tokens=n_tokens, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0)
    yield {"run": lambda: net.generate(prompt_BS, attention_mask=torch.ones_like(prompt_BS), **options).shape[1]}
