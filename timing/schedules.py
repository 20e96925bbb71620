"""Learning-rate factors as functions of the fraction of the budget spent.

Each takes a fraction from 0 to 1 and gives the factor of the peak rate. They fit any optimizer:

    LambdaLR(optimizer, lambda _: linear(budget.spent(account)))
"""


def constant(fraction: float) -> float:  # noqa: ARG001
    """The peak rate to the end."""
    return 1.0


def linear(fraction: float) -> float:
    """Linear from the peak to zero at the end of the budget: the fully decayed rate.

    The fraction is clamped, so a step past the budget trains at zero, never at a negative rate.
    """
    return 1.0 - min(max(fraction, 0.0), 1.0)
