"""A Mixture-of-Experts transformer on one page: forward, backward, loss and optimizer, in NumPy alone.

    embed -> [ attention -> route -> keep -> dispatch -> experts -> combine ] x L -> head -> loss -> step

This is the library's default model without the options and the checks, equal to it up to rounding error.  Read it from
top to bottom, then watch it learn with `python -m minimoe.course.one_page`.  Each function returns its output and its
backward, which turns the gradient of the output into the gradients of the inputs, last step first.  Comments there
quote the forward line that is differentiated.  What a backward remembers of the forward is the cache in the library.
The gradient of x is dx, and names end in their shape, one letter per axis:

    B batch   S sequence   T = B*S tokens   D model width   H heads (G = H of keys and values)   P head width
    M = S attended keys   V vocabulary   L layers   E experts   K choices per token   F expert hidden width
    C capacity (slots of an expert)   A = T*K assignments (token, expert)   N kept assignments   1 one
"""

import numpy as np

ATTENTION = ("attention.gain_D", "attention.w_q_DHP", "attention.w_k_DGP", "attention.w_v_DGP", "attention.w_o_HPD")
MOE = ("moe.gain_D", "moe.w_router_DE", "moe.w_gate_EDF", "moe.w_up_EDF", "moe.w_down_EFD")


def rmsnorm(x_TD, gain_D, eps=1e-5):
    """y = gain * x / sqrt(mean_D(x^2) + eps)                 [Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4]."""
    scale_T1 = 1 / np.sqrt((x_TD * x_TD).mean(axis=1, keepdims=True) + eps)
    unit_TD = x_TD * scale_T1

    def backward(dy_TD):
        dunit_TD = dy_TD * gain_D  # y = gain * unit
        along_T1 = (dunit_TD * unit_TD).mean(axis=1, keepdims=True)  # the scale depends on the whole token
        return scale_T1 * (dunit_TD - along_T1 * unit_TD), (dy_TD * unit_TD).sum(axis=0)  # unit = x * scale(x)
    return gain_D * unit_TD, backward


def logsumexp(x_TE):
    """log(sum_e exp(x_e)) without overflow.  `.real` here and below lets complex numbers pass, for gradient checks."""
    top_T1 = x_TE.real.max(axis=-1, keepdims=True)
    return top_T1 + np.log(np.exp(x_TE - top_T1).sum(axis=-1, keepdims=True))


def softmax(x_TE):
    """p_e = exp(x_e) / sum_i exp(x_i); an entry of -inf gets exactly 0."""
    p_TE = np.exp(x_TE - logsumexp(x_TE))  # dp_i/dx_j = p_i (1[i=j] - p_j)
    return p_TE, lambda dp_TE: p_TE * (dp_TE - (dp_TE * p_TE).sum(axis=-1, keepdims=True))


def rope(x_BHSP, theta=10_000.0, turn=1):
    """Rotate each pair (x_i, x_{i+P/2}) by position * theta^(-2i/P)            [RoFormer, arXiv:2104.09864, eq. 15]."""
    S, P = x_BHSP.shape[2:]  # q.k then depends on the distance alone; turn = -1 is the backward: it rotates back
    angle = turn * np.outer(np.arange(S), theta ** (-np.arange(0, P, 2) / P))
    cos, sin = np.cos(angle).astype(x_BHSP.real.dtype), np.sin(angle).astype(x_BHSP.real.dtype)
    first, second = np.split(x_BHSP, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def attention(x_TD, gain_D, w_q_DHP, w_k_DHP, w_v_DHP, w_o_HPD, S):
    """Each token reads from itself and from the tokens before it in its sequence of length S.

        x + softmax(q k^T / sqrt(P), future = -inf) v W_o,   q, k, v = norm(x) W    [Vaswani 2017, arXiv:1706.03762]
    """
    normed_TD, norm_backward = rmsnorm(x_TD, gain_D)
    normed_BSD, scale = normed_TD.reshape(-1, S, x_TD.shape[1]), w_q_DHP.shape[2] ** -0.5
    q_BHSP = rope(np.einsum("bsd,dhp->bhsp", normed_BSD, w_q_DHP))
    k_BHMP = rope(np.einsum("bmd,dhp->bhmp", normed_BSD, w_k_DHP))
    v_BHMP = np.einsum("bmd,dhp->bhmp", normed_BSD, w_v_DHP)
    score_BHSM = np.einsum("bhsp,bhmp->bhsm", q_BHSP, k_BHMP) * scale
    weight_BHSM, softmax_backward = softmax(np.where(np.tri(S, dtype=bool), score_BHSM, -np.inf))
    mix_BHSP = np.einsum("bhsm,bhmp->bhsp", weight_BHSM, v_BHMP)
    y_BSD = np.einsum("bhsp,hpd->bsd", mix_BHSP, w_o_HPD)

    def backward(dout_TD):  # the backward of an einsum is an einsum: output and wanted input trade places
        dy_BSD = dout_TD.reshape(y_BSD.shape)  # out = x + y: the gradient takes both paths
        dw_o_HPD = np.einsum("bhsp,bsd->hpd", mix_BHSP, dy_BSD)  # y = mix w_o
        dmix_BHSP = np.einsum("bsd,hpd->bhsp", dy_BSD, w_o_HPD)
        dv_BHMP = np.einsum("bhsm,bhsp->bhmp", weight_BHSM, dmix_BHSP)  # mix = weight v
        dscore_BHSM = softmax_backward(np.einsum("bhsp,bhmp->bhsm", dmix_BHSP, v_BHMP)) * scale
        dq_BHSP = rope(np.einsum("bhsm,bhmp->bhsp", dscore_BHSM, k_BHMP), turn=-1)  # score = scale q k^T
        dk_BHMP = rope(np.einsum("bhsm,bhsp->bhmp", dscore_BHSM, q_BHSP), turn=-1)
        pairs = (dq_BHSP, w_q_DHP), (dk_BHMP, w_k_DHP), (dv_BHMP, w_v_DHP)
        dnormed_BSD = sum(np.einsum("bhsp,dhp->bsd", dq, w) for dq, w in pairs)  # q = normed w_q, and so k and v
        dx_TD, dgain_D = norm_backward(dnormed_BSD.reshape(x_TD.shape))
        return dout_TD + dx_TD, dgain_D, *(np.einsum("bsd,bhsp->dhp", normed_BSD, dq) for dq, _ in pairs), dw_o_HPD
    return x_TD + y_BSD.reshape(x_TD.shape), backward


def route(x_TD, w_router_DE, top_k):
    """Score all experts and choose the K best for each token; their gates are probabilities, rescaled to sum to 1.

        p = softmax(x W),   g = p / sum over the K chosen of p              [Mixtral, arXiv:2401.04088, sec. 2.1]
    """
    logit_TE = x_TD @ w_router_DE
    prob_TE, softmax_backward = softmax(logit_TE)
    expert_TK = np.argsort(-logit_TE.real, axis=1, kind="stable")[:, :top_k]  # stable: ties go to the lowest index
    chosen_TK = np.take_along_axis(prob_TE, expert_TK, axis=1)
    sum_T1 = chosen_TK.sum(axis=1, keepdims=True)
    gate_TK = chosen_TK / sum_T1  # with K = 1 always 1, whatever the router computes: no gradient from the task
    balance, balance_backward = balance_loss(prob_TE, expert_TK)
    z, z_backward = z_loss(logit_TE)

    def backward(dgate_TK, dbalance, dz):  # the choice itself is piecewise constant and passes no gradient
        dchosen_TK = (dgate_TK - (dgate_TK * gate_TK).sum(axis=1, keepdims=True)) / sum_T1  # gate = chosen / sum
        dprob_TE = balance_backward(dbalance)
        dprob_TE[np.arange(len(x_TD))[:, None], expert_TK] += dchosen_TK  # chosen = prob[expert], K different ones
        dlogit_TE = softmax_backward(dprob_TE) + z_backward(dz)
        return dlogit_TE @ w_router_DE.T, x_TD.T @ dlogit_TE  # logit = x w
    return (expert_TK, gate_TK, balance, z), backward


def balance_loss(prob_TE, expert_TK):
    """How unevenly the tokens are spread over the experts: 1 if the load, or the mean probability, is uniform.

        E * sum_e f_e P_e,   f_e = share of the assignments, P_e = mean_t p_te  [Switch, arXiv:2101.03961, eq. 4-6]
    """
    T, E = prob_TE.shape
    pull_E = (E * np.bincount(expert_TK.ravel(), minlength=E) / expert_TK.size).astype(prob_TE.real.dtype)
    return pull_E @ prob_TE.mean(axis=0), lambda dloss: dloss * np.tile(pull_E / T, (T, 1))  # f, a count, is constant


def z_loss(logit_TE):
    """How large the logits are: mean_t logsumexp(logit_t)^2                  [ST-MoE, arXiv:2202.08906, eq. 5]."""
    lse_T1 = logsumexp(logit_TE)  # its gradient is the softmax, exp(logit - lse)
    return (lse_T1 * lse_T1).mean(), lambda dloss: dloss * 2 * lse_T1 / len(lse_T1) * np.exp(logit_TE - lse_T1)


def keep(expert_TK, E, capacity_factor):
    """Each expert has C slots; assignments queue by position, and those that find no slot are dropped.

        C = clip(ceil(capacity_factor * K * T / E), 1, T);  None is dropless    [Switch, arXiv:2101.03961, eq. 3]
    """
    T, K = expert_TK.shape  # below, round() makes 1.1 * 200 / 4 give 55 slots; rounding error would make it 56
    C = T if capacity_factor is None else int(np.clip(np.ceil(np.round(capacity_factor * K * T / E, 9)), 1, T))
    expert_A = expert_TK.ravel()  # token by token: no token waits behind a later one
    count_E = np.bincount(expert_A, minlength=E)
    by_expert_A = np.argsort(expert_A, kind="stable")
    slot_A = np.arange(K * T) - np.repeat(np.cumsum(count_E) - count_E, count_E)  # place in the expert's queue
    return by_expert_A[slot_A < C], np.minimum(count_E, C)  # kept_N, sorted by expert; how many each expert keeps


def swiglu(x_ND, w_gate_DF, w_up_DF, w_down_FD):
    """One expert on its rows: y = (silu(x W_gate) * (x W_up)) W_down       [Shazeer 2020, arXiv:2002.05202, eq. 6]."""
    gate_NF, up_NF = x_ND @ w_gate_DF, x_ND @ w_up_DF
    sigmoid_NF = (1 + np.tanh(gate_NF / 2)) / 2  # 1 / (1 + exp(-gate)), but exp cannot overflow
    hidden_NF = gate_NF * sigmoid_NF * up_NF  # silu(z) = z sigmoid(z)

    def backward(dy_ND):
        dhidden_NF = dy_ND @ w_down_FD.T  # y = hidden w_down
        dup_NF = dhidden_NF * gate_NF * sigmoid_NF  # hidden = silu(gate) * up
        dgate_NF = dhidden_NF * up_NF * sigmoid_NF * (1 + gate_NF * (1 - sigmoid_NF))  # silu' = s + z s (1 - s)
        dx_ND = dgate_NF @ w_gate_DF.T + dup_NF @ w_up_DF.T  # gate = x w_gate, up = x w_up
        return dx_ND, x_ND.T @ dgate_NF, x_ND.T @ dup_NF, hidden_NF.T @ dy_ND
    return hidden_NF @ w_down_FD, backward


def add_rows(rows_ND, index_N, n_rows):
    """The backward of rows = x[index]: each row is added to the place that it came from.  Returns n_rows rows."""
    total = np.zeros((n_rows, rows_ND.shape[1]), rows_ND.dtype)
    np.add.at(total, index_N, rows_ND)  # `total[index] += rows` would keep only one row per index
    return total


def moe(x_TD, gain_D, w_router_DE, w_gate_EDF, w_up_EDF, w_down_EFD, top_k, capacity_factor):
    """Send each token to K of E experts and add up their outputs, weighted by the gates.  Dropped assignments add 0.

        x_t + sum over the kept experts e of t of gate_te * SwiGLU_e(norm(x_t))     [Shazeer 2017, arXiv:1701.06538]
    """
    normed_TD, norm_backward = rmsnorm(x_TD, gain_D)
    (expert_TK, gate_TK, balance, z), route_backward = route(normed_TD, w_router_DE, top_k)
    kept_N, count_E = keep(expert_TK, len(w_gate_EDF), capacity_factor)
    token_N, gate_N1 = kept_N // top_k, gate_TK.reshape(-1, 1)[kept_N]
    rows = np.split(normed_TD[token_N], np.cumsum(count_E)[:-1])  # dispatch: the rows of each expert
    experts = [swiglu(*expert) for expert in zip(rows, w_gate_EDF, w_up_EDF, w_down_EFD, strict=True)]
    out_ND = np.concatenate([out for out, _ in experts])
    y_TD = add_rows(gate_N1 * out_ND, token_N, len(x_TD))  # combine

    def backward(dout_TD, dbalance, dz):
        dy_ND = dout_TD[token_N]  # y[token] += gate * out
        dgate_TK = np.zeros_like(gate_TK)  # dropped assignments have no gradient
        dgate_TK.flat[kept_N] = (dy_ND * out_ND).sum(axis=1)
        douts = np.split(gate_N1 * dy_ND, np.cumsum(count_E)[:-1])
        dexperts = [expert_backward(dout) for (_, expert_backward), dout in zip(experts, douts, strict=True)]
        drows, *dweights = zip(*dexperts, strict=True)
        dnormed_TD = add_rows(np.concatenate(drows), token_N, len(x_TD))  # rows = normed[token]
        drouter_TD, dw_router_DE = route_backward(dgate_TK, dbalance, dz)
        dx_TD, dgain_D = norm_backward(dnormed_TD + drouter_TD)  # through the experts, and through the router
        return dout_TD + dx_TD, dgain_D, dw_router_DE, *map(np.stack, dweights)
    routing = {"expert_TK": expert_TK, "gate_TK": gate_TK, "kept_N": kept_N, "balance": balance, "z": z}
    return (x_TD + y_TD, routing), backward


def objective(params, tokens_BS, targets_BS, top_k=2, capacity_factor=None, balance_coef=0.01, z_coef=0.001):
    """The whole model and its loss: ce + balance_coef * balance + z_coef * z, the last two as means over the layers."""
    token_T, target_T, w_head_DV = tokens_BS.ravel(), targets_BS.ravel(), params["head.w_DV"]
    x_TD, layers, routings = params["embed.w_VD"][token_T], [], []  # embed
    for i in range(sum(name.endswith("w_router_DE") for name in params)):
        prefix = f"layers.{i}."
        x_TD, attention_backward = attention(x_TD, *(params[prefix + name] for name in ATTENTION), tokens_BS.shape[1])
        (x_TD, routing), moe_backward = moe(x_TD, *(params[prefix + name] for name in MOE), top_k, capacity_factor)
        layers.append((prefix, attention_backward, moe_backward))
        routings.append(routing)
    normed_TD, norm_backward = rmsnorm(x_TD, params["final.gain_D"])
    logit_TV = normed_TD @ w_head_DV  # head
    lse_T1, rows_T = logsumexp(logit_TV), np.arange(len(target_T))
    losses = {name: sum(routing[name] for routing in routings) / len(layers) for name in ("balance", "z")}
    losses["ce"] = (lse_T1[:, 0] - logit_TV[rows_T, target_T]).mean()  # -log softmax(logit)[target], nats per token
    losses["total"] = losses["ce"] + balance_coef * losses["balance"] + z_coef * losses["z"]

    def backward():
        dlogit_TV = np.exp(logit_TV - lse_T1)  # ce = mean(lse - logit[target]): prediction minus target
        dlogit_TV[rows_T, target_T] -= 1
        dlogit_TV /= len(target_T)
        dx_TD, dgain_D = norm_backward(dlogit_TV @ w_head_DV.T)  # logit = normed w_head
        grads = {"head.w_DV": normed_TD.T @ dlogit_TV, "final.gain_D": dgain_D}
        for prefix, attention_backward, moe_backward in reversed(layers):
            dx_TD, *dmoe = moe_backward(dx_TD, balance_coef / len(layers), z_coef / len(layers))
            dx_TD, *dattention = attention_backward(dx_TD)
            grads |= {prefix + name: dw for name, dw in zip(ATTENTION + MOE, dattention + dmoe, strict=True)}
        return grads | {"embed.w_VD": add_rows(dx_TD, token_T, len(params["embed.w_VD"]))}  # x = w[token]
    return (losses, routings), backward


def adamw_step(params, grads, moments, step, lr=3e-3, decay=0.1, beta1=0.9, beta2=0.99, eps=1e-8, clip_norm=1.0):
    """Clip, then one step of AdamW with decoupled decay of matrices.  Changes params and moments, which start at 0.

        m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   t = step + 1
        w = w - lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay * w)    [arXiv:1711.05101, algorithm 2]
    """
    norm, t = sum(float(np.vdot(grad, grad)) for grad in grads.values()) ** 0.5, step + 1
    for name, w in params.items():
        g, m, v = grads[name] * (clip_norm / max(norm, clip_norm)), moments[0][name], moments[1][name]
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        update = m / (1 - beta1 ** t) / (np.sqrt(v / (1 - beta2 ** t)) + eps)
        w -= lr * (update + (decay if w.ndim > 1 else 0) * w)


if __name__ == "__main__":  # four experts, two per token, memorize a rhyme
    text = "Peter Piper picked a peck of pickled peppers; a peck of pickled peppers Peter Piper picked."
    id_T, rng = np.unique(list(text), return_inverse=True)[1], np.random.default_rng(0)
    V, D, H, P, E, F = id_T.max() + 1, 32, 4, 8, 4, 32
    block = (D,), (D, H, P), (D, H, P), (D, H, P), (H, P, D), (D,), (D, E), (E, D, F), (E, D, F), (E, F, D)
    shapes = {"embed.w_VD": (V, D), "final.gain_D": (D,), "head.w_DV": (D, V)}
    shapes |= {f"layers.{i}.{name}": block[j] for i in range(2) for j, name in enumerate(ATTENTION + MOE)}
    params = {name: np.ones(s) if len(s) == 1 else rng.normal(size=s) / D ** 0.5 for name, s in shapes.items()}
    moments = [{name: np.zeros_like(w) for name, w in params.items()} for _ in range(2)]
    for step in range(101):
        tokens_BS = rng.integers(len(id_T) - 32, size=(4, 1)) + np.arange(32)
        (losses, routings), backward = objective(params, id_T[tokens_BS], id_T[tokens_BS + 1], capacity_factor=1.25)
        adamw_step(params, backward(), moments, step)
        if step % 10 == 0:
            lost = 1 - np.mean([len(routing["kept_N"]) / routing["expert_TK"].size for routing in routings])
            print(f"step {step:3}  loss {losses['ce']:.3f} nats  balance {losses['balance']:.3f}  {lost:3.0%} dropped")
