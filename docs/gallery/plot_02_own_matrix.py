"""
One's own sampling matrix
=========================

A device gives a matrix of its own. Here it has rows of +1 and -1 on blocks of 16 x 16 pixels, which are neither random
Gaussian numbers nor orthonormal.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

from cs_models import load
from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set

SIZE = 128
matrix = np.random.default_rng(0).choice([-1.0, 1.0], size=(64, 256))
x = load_set("bundled")[1][1][None, :, 80 : 80 + SIZE, 80 : 80 + SIZE]
operator = make_operator(matrix, ratio=0.25, image_size=(SIZE, SIZE))
y = operator(x)

# %%
# Solvers and networks whiten such a matrix before they use it, so nothing has to be scaled by hand.
estimates = {
    "total variation": build_method("tv", 0.25).reconstruct(y, operator),
    "R-COAST": load("r_coast").reconstruct(y, operator),
}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained")
axes[0].imshow(x[0, 0], cmap="gray", vmin=0, vmax=1)
axes[0].set_title("original")
for place, (name, estimate) in zip(axes[1:], estimates.items(), strict=True):
    place.imshow(estimate[0, 0], cmap="gray", vmin=0, vmax=1)
    place.set_title(f"{name}, {psnr(estimate.clamp(0, 1), x).item():.2f} dB")
for place in axes:
    place.axis("off")
