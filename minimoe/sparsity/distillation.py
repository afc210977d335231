"""Distillation: a student, such as a dense model, learns to imitate the outputs of a teacher, such as an MoE."""

from typing import NamedTuple

import numpy as np

from minimoe import model, require
from minimoe.config import fields
from minimoe.nn import ops


class DistillationCache(NamedTuple):
    """The probabilities of student and teacher at the temperature, the temperature, and the weight of each token."""

    p_TV: np.ndarray
    teacher_TV: np.ndarray
    weight_T: np.ndarray
    temperature: float


def distillation_forward(logit_TV, teacher_TV, weight_T, temperature=1.0):
    """How far a student is from its teacher: the weighted mean over tokens of the KL divergence of its distribution.

        L = tau^2 * sum_t weight_t sum_v q log(q / p),  p = softmax(student / tau),  q = softmax(teacher / tau)

    tau^2 keeps the size of the gradient at every temperature.      [Hinton 2015, arXiv:1503.02531, sec. 2]

    Args:
        logit_TV: logits of the student.
        teacher_TV: logits of the teacher, a constant.
        weight_T: weight of each token; sums to 1.
        temperature: tau, above 0.
    Returns the loss in nats per token, cache.
    """
    fields.require(require.number("temperature", temperature) > 0, "temperature", temperature, "must be above 0")
    p_TV, log_p_TV = _log_softmax(ops.floats("logit_TV", logit_TV) / temperature)
    q_TV, log_q_TV = _log_softmax(ops.floats("teacher_TV", teacher_TV) / temperature)
    loss = temperature ** 2 * (weight_T @ (q_TV * (log_q_TV - log_p_TV)).sum(axis=1))
    return loss, DistillationCache(p_TV, q_TV, weight_T, temperature)


def distillation_backward(dloss, cache):
    """Gradient of logit_TV: the student's probabilities minus the teacher's."""
    scale_T = dloss * cache.temperature * cache.weight_T  # tau^2, and 1/tau of logit/tau
    return scale_T[:, None] * (cache.p_TV - cache.teacher_TV)


def _log_softmax(logit_TV):
    shifted_TV = logit_TV - logit_TV.real.max(axis=1, keepdims=True)
    log_p_TV = shifted_TV - np.log(np.exp(shifted_TV).sum(axis=1, keepdims=True))
    return np.exp(log_p_TV), log_p_TV


def teacher(params, config, weight=1.0, temperature=2.0):
    """A teacher for `loop.train`, which adds weight * `distillation_forward` to the objective of a student.

    Args:
        params: name -> array, the parameters of the teacher.
        config: ModelConfig of the teacher; its vocabulary must be the student's.
        weight: weight of this loss; the cross-entropy has weight 1.
        temperature: tau.
    Returns a function of a Group and the student's logit_TV that returns the loss and its gradient.
    """
    require.number("weight", weight)

    def extra(group, logit_TV):
        (teacher_TV, _), _ = model.model_forward(params, group.tokens_BS, config, group.mask_BS)
        if teacher_TV.shape != logit_TV.shape:
            raise ValueError(f"vocab_size = {config.vocab_size}: the student knows {logit_TV.shape[1]} tokens")
        mask_T = np.ones(len(logit_TV), bool) if group.mask_BS is None else group.mask_BS.ravel()
        weight_T = (weight * mask_T / (group.n_real or max(mask_T.sum(), 1))).astype(logit_TV.dtype)
        loss, cache = distillation_forward(logit_TV, teacher_TV, weight_T, temperature)
        return loss, distillation_backward(1.0, cache)

    return extra
