"""What every transformer has.

    ops         matrix product, softmax, RMSNorm, SwiGLU, embedding, cross-entropy: each with its backward
    attention   causal attention with rotary positions and grouped key heads
    normal      the CDF of the normal distribution, which noisy top-k needs
"""
