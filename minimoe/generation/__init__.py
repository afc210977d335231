"""Text from a trained model.

    sampling   which token comes next, and which models can generate at all
    decoding   prefill and decode: one token at a time, with a KV cache
"""
