"""
Signals of one dimension
========================

A signal is an image of one column. CLOMP learns the coefficients of each signal by itself, without training.
"""

# %%
import matplotlib.pyplot as plt
import torch

from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method

SIZE = 256
time = torch.linspace(0, 1, SIZE)
signal = 0.5 + 0.2 * torch.sin(9 * time) + 0.15 * torch.cos(31 * time) + 0.1 * torch.cos(64 * time)
x = signal.view(1, 1, SIZE, 1)
operator = make_operator("column", ratio=0.3, image_size=(SIZE, 1))
y = operator(x)

# %%
figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
axes.plot(time, signal, color="black", linewidth=2, label="signal")
for name in ("omp", "clomp"):
    estimate = build_method(name, 0.3).reconstruct(y, operator)
    axes.plot(time, estimate.flatten(), "--", label=f"{name}, {psnr(estimate, x).item():.1f} dB")
axes.set(xlabel="time", ylabel="value")
axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15))
