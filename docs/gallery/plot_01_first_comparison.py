"""
First comparison
================

One photograph, a tenth of its measurements, three methods: the best linear estimate, total variation, and a network.
"""

# %%
# The photograph comes with scikit-image, and the network with this package.
import matplotlib.pyplot as plt
import torch

from cs_models import load
from cs_models.metrics import psnr
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set

SIZE = 128
x = load_set("bundled")[0][1][None, :, 60 : 60 + SIZE, 60 : 60 + SIZE]
network = load("r_coast")
operator = network.default_operator(ratio=0.1, image_size=(SIZE, SIZE))
y = operator(x)
print(f"{x.numel()} pixels, {y.numel()} measurements")

# %%
# Every method is used in the same way.
methods = {"linear": build_method("linear", 0.1), "total variation": build_method("tv", 0.1), "R-COAST": network}
images = {"original": x} | {name: method.reconstruct(y, operator).clamp(0, 1) for name, method in methods.items()}

figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for place, (name, image) in zip(axes, images.items(), strict=True):
    place.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
    place.set_title(name if torch.equal(image, x) else f"{name}, {psnr(image, x).item():.2f} dB")
    place.axis("off")
