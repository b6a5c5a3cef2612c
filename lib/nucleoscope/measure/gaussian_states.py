"""Hidden states drawn from a Gaussian with the mean and covariance of observed ones, and what a model makes of them.

Contract: states in, states out; and logits, by the same way that the model goes from its last hidden states to them.
"""

import math
from collections.abc import Callable

import torch

from nucleoscope.measure import checking
from nucleoscope.measure.scoring import BATCHED, TextForward

SAME_HALF = 2**-5  # largest difference of logits, as in `checking.TOLERANCES`, in bfloat16 and float16
# Of the binary logarithm of the factor: the first and the largest step of the search, the largest value, and the
# precision (1% of the factor).
FIRST_STEP, LARGEST_STEP, WIDEST, PRECISION = 1 / 4, 1, 10, 1 / 64


class OutputLayer:
    """A model's way from its last hidden states to its logits, with any scaling and cap.

    Where the output layer alone was shown to give the model's own logits, it is called. Otherwise the model itself
    runs on one token, and what its base model returns is replaced by the states.
    """

    def __init__(self, forward: TextForward):
        self.forward = forward

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        """The logits (n, V) of states (n, d). Call it in torch's inference mode."""
        forward = self.forward
        if forward.reading == BATCHED:
            return forward.head(states).to(forward.device)
        hook = forward.base.register_forward_hook(lambda _, __, output: _replace_first(output, states[None]))
        try:
            options = {"use_cache": False} if "use_cache" in forward.accepted else {}
            output = forward.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=forward.device), **options)
        finally:
            hook.remove()
        return output.logits[0].to(forward.device)

    def is_homogeneous(self, states: torch.Tensor) -> bool:
        """Whether twice these ``states`` (n, d) give twice their logits, exactly: not if there is a bias or a cap.

        In float16, rounding of the smallest numbers can hide that they do.
        """
        return torch.equal(self.compute_logits(2 * states).float(), 2 * self.compute_logits(states).float())

    def reproduces(self, logits: torch.Tensor, states: torch.Tensor) -> bool:
        """Whether observed ``states`` (n, d) give the ``logits`` (n, V) that the model gave, up to rounding."""
        if self.forward.reading == BATCHED:
            return True
        try:
            found = self.compute_logits(states)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # what is raised depends on the model
            return False
        if found.shape != logits.shape:
            return False
        tolerance = checking.TOLERANCES.get(self.forward.model.dtype, SAME_HALF)
        return checking.measure_difference(found, logits) <= tolerance


def _replace_first(output, states: torch.Tensor):
    """What a base model returned, with other hidden states."""
    if isinstance(output, tuple):
        return (states, *output[1:])
    if isinstance(output, torch.Tensor):
        return states
    output[next(iter(output))] = states
    return output


def draw_states(observed: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
    """``number`` states (number, d) float32 from the Gaussian with the mean and covariance of ``observed`` (n, d).

    The covariance is the unbiased one. It is never formed: with Z of independent standard normal numbers,
    Z X / sqrt(n - 1) has the covariance X'X / (n - 1) of the centred rows X, also where n is smaller than d.
    """
    observed = observed.float()
    mean = observed.mean(0)
    numbers = torch.randn(number, len(observed), generator=generator).to(observed.device)
    return mean + numbers @ (observed - mean) / max(1, len(observed) - 1) ** 0.5


def find_factor(compute_median: Callable[[float], float], wanted: float) -> float | None:
    """The factor of states, near 1, with which the median k is the ``wanted`` one; None if there is none.

    Larger states make larger logits and so fewer candidates: ``compute_median`` falls with the factor. It is 0 where
    logits are not finite, because the factor is too large. Of the others that were tried, the one with the nearest
    median is returned, by its logarithm.
    """
    tried: dict[float, float] = {}

    def exceeds(power: float) -> bool:
        tried[power] = compute_median(2.0**power)
        return tried[power] > wanted

    if not exceeds(0) and tried[0] == wanted:
        return 1.0
    step = FIRST_STEP if tried[0] > wanted else -FIRST_STEP
    start, end = 0.0, step
    while exceeds(end) == (step > 0) and abs(end) < WIDEST:
        step = math.copysign(min(2 * abs(step), LARGEST_STEP), step)
        start, end = end, max(-WIDEST, min(end + step, WIDEST))
    low, high = sorted((start, end))
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    tried = {power: median for power, median in tried.items() if median}
    if not tried or not min(tried.values()) <= wanted <= max(tried.values()):
        return None
    return 2.0 ** min(tried, key=lambda power: (abs(math.log(tried[power] / wanted)), abs(power)))
