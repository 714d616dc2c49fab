"""
Recursion chosen at test time
=============================

R-COAST has five layers, each of which is applied four times in a row. How often is a choice of the user: one network
serves many budgets.
"""

# %%
import matplotlib.pyplot as plt

from cs_models import load
from cs_models.metrics import psnr
from datamodules.catalog import load_set

SIZE = 128
x = load_set("bundled")[0][1][None, :, 60 : 60 + SIZE, 60 : 60 + SIZE]
network = load("r_coast")
operator = network.default_operator(0.1, (SIZE, SIZE))
y = operator(x)

# %%
# `return_all` gives the image after each iteration.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for count in (1, 2, 3, 4):
    network.set_schedule([count] * 5)
    estimates = network.reconstruct(y, operator, return_all=True)
    curve = [psnr(estimate.clamp(0, 1), x).item() for estimate in estimates]
    axes.plot(range(1, len(curve) + 1), curve, marker="o", markersize=3, label=str(count))
    print(f"{5 * count:>2} iterations: {curve[-1]:.2f} dB")
axes.set(xlabel="iteration", ylabel="PSNR in dB", xticks=range(0, 21, 5))
axes.grid(alpha=0.3)
axes.legend(title="iterations of each layer", ncols=4)
