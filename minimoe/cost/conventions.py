"""FLOPs of training by the formulas of the papers, each under its name.

They disagree on the embedding, the head, the softmax, the router and the attention scores.  So "the FLOPs of a model"
means little without the formula.  No paper's halves attention because half of the scores are masked; ours has
both counts.

    N   parameters, each formula has its own            T   tokens of a sequence
    L   layers      d   width of the residual stream    V   tokens in the vocabulary
    H   heads       Q   width of a head, of its query   weights   matrices in the layers, those that one token uses
"""

from minimoe.cost import formula, parts

IN_LAYERS = ("attention", "router", "experts", "shared experts", "dense")
"""The parts whose matrices the formulas call the weights of the layers."""


def dense_weights(n_layers, d_model, width, hidden):
    """Weights of the layers of the plain dense transformers in the papers' tables.

        weights = L (4 d H Q + 2 d hidden)

    Args:
        n_layers: L.
        d_model: d.
        width: H Q, the width of all heads together.
        hidden: width of the hidden layer of a feed-forward network.
    """
    return n_layers * (4 * d_model * width + 2 * d_model * hidden)


def kaplan_forward(n, n_layers, sequence, width):
    """Forward FLOPs per token.

        2 N + 2 L T H Q                                     [Kaplan, arXiv:2001.08361, sec. 2.1 and table 1]

    Leaves out the embeddings including the head, the softmax, norms and biases.  Of attention's two products with other
    tokens it counts one.

    Args:
        n: parameters without embeddings.
        n_layers: L.
        sequence: T.
        width: H Q.
    """
    return 2 * n + 2 * n_layers * sequence * width


def kaplan(n):
    """Training FLOPs per token.

        6 N                                                 [Kaplan, arXiv:2001.08361, sec. 2.1]

    n: parameters without embeddings.   Leaves out the same as `kaplan_forward`, and the attention scores too.
    """
    return 6 * n


def palm(n, n_layers, n_heads, head_width, sequence):
    """Training FLOPs per token.

        6 N + 12 L H Q T                                    [PaLM, arXiv:2204.02311, app. B]

    Leaves out softmax, norms and the look-up of the embedding.

    Args:
        n: N, including the tied table of embedding and head, since the head is a matrix product.
        n_layers: L.
        n_heads: H.
        head_width: Q.
        sequence: T.
    """
    return 6 * n + 12 * n_layers * n_heads * head_width * sequence


def chinchilla(weights, n_layers, n_heads, head_width, d_model, vocab, sequence, embeddings=True):
    """Training FLOPs of a sequence.

        forward = 2 T weights + L H (4 Q T^2 + 3 T^2) + 4 T V d;  backward = 2 forward
                                                            [Chinchilla, arXiv:2203.15556, app. F]

    3 T^2 is the softmax of a head.  Leaves out norms, and the projection of relative positions in its models.

    Args:
        weights: in the paper, those of `dense_weights`.
        n_layers: L.
        n_heads: H.
        head_width: Q.
        d_model: d.
        vocab: V.
        sequence: T.
        embeddings: whether to count 4 T V d, the embedding as a product with one-hot vectors, and the head; False
            leaves both out, as in the paper's table A4.
    """
    forward = 2 * sequence * weights + n_layers * n_heads * (4 * head_width + 3) * sequence**2
    return 3 * (forward + embeddings * 4 * sequence * vocab * d_model)


def deepseek_moe(weights, n_layers, width, d_model, vocab, sequence):
    """Training FLOPs of a sequence.

        T (6 weights + 12 L H Q T + 6 V d)                   [DeepSeekMoE, arXiv:2401.06066, from its tables]

    Leaves out the router, the embedding's look-up, softmax and norms.  The paper prints no formula; the numbers in its
    tables follow this one, except those of the two largest models.

    Args:
        weights: in the paper, 4 L d^2 + 8 d^2 F, where F is the number of feed-forward networks in all layers; an
            expert of a quarter of the width counts as 1/4.
        n_layers: L.
        width: H Q.
        d_model: d.
        vocab: V.
        sequence: T.
    """
    return sequence * (6 * weights + 12 * n_layers * width * sequence + 6 * vocab * d_model)


def nanogpt_forward(weights, n_layers, width, d_model, vocab, sequence):
    """Forward FLOPs of a sequence.

        2 T (weights + V d) + 4 L H Q T^2                   [nanoGPT, transformer_sizing.ipynb]

    Leaves out the look-ups of tokens and positions, softmax, norms and biases.

    Args:
        weights: of a GPT-2, 12 L d^2.
        n_layers: L.
        width: H Q.
        d_model: d.
        vocab: V.
        sequence: T.
    """
    return 2 * sequence * (weights + vocab * d_model) + 4 * n_layers * width * sequence**2


def training_flops(arch, sequence):
    """The result of each formula for an Architecture: a list of (name, source, training FLOPs per token), ours last.

    N and weights are those that one token uses, of the model as it is: gated blocks, few heads for keys and latent
    attention included.  N is without embeddings for Kaplan (norms and biases are in it), and for PaLM with the matrix
    of the head, tied or not.
    Q is the mean of a head's query and value where they differ.  A layer that attends twice counts as two in L.  They
    know no windows: theirs is attention to all T tokens.
    Soft MoE, whose rows are slots and not tokens, is counted so by ours alone.
    """
    listed = parts.parts(arch)
    weights = sum(part.products for part in listed if part.name in IN_LAYERS)
    router = sum(part.products for part in listed if part.name == "router")
    n = parts.parameters(arch).active_without_embeddings
    D, V, H, Q = arch.d_model, arch.vocab, arch.n_heads, (arch.query_width + arch.value_width) / 2
    L = sum(parts.n_attentions(arch, layer) for layer in range(arch.n_layers))
    chinchilla_all, chinchilla_layers = (chinchilla(weights, L, H, Q, D, V, sequence, embeddings)
                                         for embeddings in (True, False))
    deepseek = deepseek_moe(weights - router, L, H * Q, D, V, sequence)
    causal, ours = (sum(formula.flops(arch, 1, sequence, causal=skips).values()) for skips in (True, False))
    return [
        ("Kaplan", "arXiv:2001.08361, sec. 2.1", kaplan(n)),
        ("PaLM", "arXiv:2204.02311, app. B", palm(n + V * D, L, H, Q, sequence)),
        ("Chinchilla", "arXiv:2203.15556, app. F", chinchilla_all / sequence),
        ("Chinchilla, layers alone", "arXiv:2203.15556, table A4", chinchilla_layers / sequence),
        ("DeepSeekMoE", "arXiv:2401.06066, tables", deepseek / sequence),
        ("nanoGPT", "transformer_sizing.ipynb", 3 * nanogpt_forward(weights, L, H * Q, D, V, sequence) / sequence),
        ("ours, causal", "without the masked scores", causal / sequence),
        ("ours", "each matrix product", ours / sequence),
    ]
