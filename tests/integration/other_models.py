"""Other implementations of the model: Mixtral of the transformers library, and PyTorch for what that lacks.

Both use our weights as tensors under our names, so autograd's gradients can be compared with ours name by name.
"""

import math

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from minimoe import model, parameters

torch.set_num_threads(1)  # on matrices this small a second thread only waits


class Float64(TorchFunctionMode):
    """The library computes norms, angles, gates and losses in float32 whatever the model's dtype; here in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(self.widen, args), **{name: self.widen(value) for name, value in (kwargs or {}).items()})

    def widen(self, argument):
        return torch.float64 if argument is torch.float32 else argument


def leaves_of(params):
    """The parameters as tensors that gradients can be asked for."""
    return {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}


def grads_of(loss, leaves):
    """Autograd's gradients as arrays."""
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {name: grad.numpy() for name, grad in zip(leaves, grads, strict=True)}


def mixtral(config, experts="eager"):
    """A Mixtral of the same shape.  Its load sums to K, so its balance loss takes K times less weight.

    experts: "eager" loops over them in any dtype; None is the library's default, which has no float64.
    """
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads, num_key_value_heads=config.kv_heads, intermediate_size=config.d_hidden,
        num_local_experts=config.n_experts, num_experts_per_tok=config.top_k, rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_sequence, tie_word_embeddings=config.tie_embeddings,
        output_router_logits=True, router_aux_loss_coef=config.balance_coef / config.top_k,
        experts_implementation=experts))


def mixtral_weights(w, config):
    """Our weights under the library's names: its matrices are [out, in], and an expert's gate and up are one."""
    theirs = {"model.embed_tokens.weight": w["embed.w_VD"], "model.norm.weight": w["final.gain_D"]}
    if not config.tie_embeddings:
        theirs["lm_head.weight"] = w["head.w_DV"].T
    for i in range(config.n_layers):
        attention, moe = (parameters.scope(w, f"layers.{i}.{part}.") for part in ("attention", "moe"))
        theirs |= parameters.unscope({
            "input_layernorm.weight": attention["gain_D"],
            "self_attn.q_proj.weight": attention["w_q_DHP"].flatten(1).T,
            "self_attn.k_proj.weight": attention["w_k_DGP"].flatten(1).T,
            "self_attn.v_proj.weight": attention["w_v_DGP"].flatten(1).T,
            "self_attn.o_proj.weight": attention["w_o_HPD"].flatten(0, 1).T,
            "post_attention_layernorm.weight": moe["gain_D"],
            "mlp.gate.weight": moe["w_router_DE"].T,
            "mlp.experts.gate_up_proj": torch.cat([moe["w_gate_EDF"], moe["w_up_EDF"]], dim=2).mT,
            "mlp.experts.down_proj": moe["w_down_EFD"].mT,
        }, f"model.layers.{i}.")
    return theirs


def run_mixtral(net, leaves, tokens_BS, targets_BS, config, mask_BS=None):
    """The library's output (loss, logits, aux_loss) with our weights.  Its own are only looked at for their shapes."""
    weights = mixtral_weights(leaves, config)
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in net.named_parameters()}
    mask_BS = np.ones(tokens_BS.shape, bool) if mask_BS is None else mask_BS
    labels_BS = torch.tensor(np.where(mask_BS, targets_BS, -100))  # -100 is no target
    return torch.func.functional_call(net, weights, kwargs={
        "input_ids": torch.tensor(tokens_BS), "attention_mask": torch.tensor(mask_BS).long(),
        "labels": labels_BS, "shift_labels": labels_BS})


def plain_losses(w, tokens_BS, targets_BS, config):
    """The Losses of the whole model in PyTorch."""
    x_BSD = functional.embedding(torch.tensor(tokens_BS), w["embed.w_VD"])
    balances, zs = [], []
    for i in range(config.n_layers):
        attention, moe = (parameters.scope(w, f"layers.{i}.{part}.") for part in ("attention", "moe"))
        x_BSD = x_BSD + plain_attention(rms_norm(x_BSD, attention["gain_D"], config), attention, config.rope_theta)
        y_TD, balance, z = plain_moe(rms_norm(x_BSD, moe["gain_D"], config).flatten(0, 1), moe, config)
        x_BSD = x_BSD + y_TD.view_as(x_BSD)
        balances.append(balance)
        zs.append(z)
    logit_BSV = rms_norm(x_BSD, w["final.gain_D"], config) @ w["head.w_DV"]
    ce = functional.cross_entropy(logit_BSV.flatten(0, 1), torch.tensor(targets_BS).flatten())
    balance, z = sum(balances) / config.n_layers, sum(zs) / config.n_layers
    total = ce + config.balance_coef * balance + config.z_coef * z
    return model.Losses(ce, {"balance": balance, "z": z}, total)


def rms_norm(x_BSD, gain_D, config):
    return functional.rms_norm(x_BSD, gain_D.shape, gain_D, config.norm_eps)


def plain_attention(x_BSD, w, rope_theta):
    q, k, v = (torch.einsum("bsd,dhp->bhsp", x_BSD, w[name]) for name in ("w_q_DHP", "w_k_DGP", "w_v_DGP"))
    mix = functional.scaled_dot_product_attention(
        turn(q, rope_theta), turn(k, rope_theta), v, is_causal=True, enable_gqa=True)
    return torch.einsum("bhsp,hpd->bsd", mix, w["w_o_HPD"])


def turn(x_BHSP, theta):
    """Rotary positions: a head's halves are the real and imaginary parts of numbers that the position turns."""
    real, imaginary = x_BHSP.chunk(2, dim=-1)
    n_pairs = real.shape[-1]
    frequency = theta ** (-torch.arange(n_pairs, dtype=x_BHSP.dtype) / n_pairs)
    angle = torch.outer(torch.arange(x_BHSP.shape[2]), frequency)
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def plain_moe(x_TD, w, config):
    """Every expert processes every token; a gate of 0 removes those that were not chosen or had no room."""
    T, E, K = len(x_TD), config.n_experts, config.top_k
    logit_TE = x_TD @ w["w_router_DE"]
    prob_TE = logit_TE.softmax(dim=1)
    chosen_TE = functional.one_hot(prob_TE.topk(K).indices, E).sum(dim=1)
    gate_TE = prob_TE * chosen_TE
    if config.gates_sum_to_one:
        gate_TE = gate_TE / gate_TE.sum(dim=1, keepdim=True)
    if config.capacity_factor is not None:
        place_TE = chosen_TE.cumsum(dim=0)  # in the expert's queue, earlier tokens first, counted from 1
        gate_TE = gate_TE * (place_TE <= math.ceil(config.capacity_factor * K * T / E))
    h_TEF = functional.silu(torch.einsum("td,edf->tef", x_TD, w["w_gate_EDF"])) * torch.einsum(
        "td,edf->tef", x_TD, w["w_up_EDF"])
    y_TD = torch.einsum("te,tef,efd->td", gate_TE, h_TEF, w["w_down_EFD"])
    load_E = chosen_TE.to(prob_TE.dtype).mean(dim=0) / K
    return y_TD, E * (load_E @ prob_TE.mean(dim=0)), logit_TE.logsumexp(dim=1).square().mean()
