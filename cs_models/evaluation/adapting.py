"""Which methods ``--adapt`` is for."""

from __future__ import annotations

from cs_models.errors import UserError
from cs_models.evaluation.options import Execution
from cs_models.reconstruction import Reconstructor
from cs_models.training.adaptation import Adaptation
from cs_models.training.module import ReconstructionModule


def wanted_adaptation(execution: Execution, method: Reconstructor, text: str) -> Adaptation | None:
    """How a method is adapted to each image; None where that is not asked for.

    Args:
        execution: with the options.
        method: what reconstructs.
        text: the method as typed.

    Raises:
        UserError: for a method that is no network for any operator.
    """
    if not execution.adapt:
        return None
    if not isinstance(method, ReconstructionModule) or not method.any_operator:
        raise UserError(
            f"--adapt fine-tunes networks that take any operator, such as scnet and r_coast, and '{text}' is none; "
            "evaluate it by itself, without --adapt"
        )
    return Adaptation(execution.adapt, execution.adapt_rate, execution.adapt_loss)
