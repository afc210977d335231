"""What every transformer has.

    ops         matrix product, softmax, RMSNorm, SwiGLU, embedding, cross-entropy: each with its backward
    attention   causal attention with rotary position embeddings and grouped queries
    normal      the CDF of the normal distribution, which noisy top-k needs
"""
