"""Text from a trained model.

    sampling   which token comes next, and which models can be asked
    decoding   one token at a time, with the keys and values of earlier tokens cached
"""
