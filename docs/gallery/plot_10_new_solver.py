"""
A new solver in 20 lines
========================

A solver is a dataclass with its settings, and one method from measurements to a solution. Projected gradient descent
with Nesterov's momentum knows no more of an image than that its pixels are in [0, 1].
"""

# %%
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cs_models.metrics import psnr
from cs_models.operators import MeasurementOperator, make_operator
from cs_models.reconstruction import Reconstructor, Solution
from datamodules.catalog import load_set


@dataclass
class InTheBox(Reconstructor):
    """Least squares with pixels in [0, 1]."""

    iterations: int = 60

    def _solve(self, y: Tensor, operator: MeasurementOperator) -> Solution:
        x = before = torch.full_like(operator.adjoint(y), 0.5)
        for step in range(self.iterations):
            ahead = x + step / (step + 3) * (x - before)
            before, x = x, (ahead - operator.adjoint(operator(ahead) - y)).clamp(0, 1)
        return Solution(x)

    def settings(self) -> dict[str, Any]:
        return {"iterations": self.iterations}


# %%
# It works with every operator. From the command line it would be ``--methods module:my_file.py:InTheBox``.
SIZE = 128
x = (load_set("bundled")[0][1][None, :, 60 : 60 + SIZE, 60 : 60 + SIZE] > 0.5).float()
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained")
axes[0].imshow(x[0, 0], cmap="gray")
axes[0].set_title("black and white")
for place, ratio in zip(axes[1:], (0.3, 0.7), strict=True):
    operator = make_operator("block", ratio, (SIZE, SIZE))
    estimate = InTheBox().reconstruct(operator(x), operator)
    place.imshow(estimate[0, 0], cmap="gray", vmin=0, vmax=1)
    place.set_title(f"{ratio:.0%}, {psnr(estimate, x).item():.1f} dB")
for place in axes:
    place.axis("off")
