"""
Magnetic resonance and tomography
=================================

The same solver on other measurements: lines through the centre of the spectrum (MRI), and parallel beams from a few
directions (CT).
"""

# %%
import matplotlib.pyplot as plt
import torch.nn.functional as F

from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set

SIZE = 80
phantom = load_set("phantom")[0][1][None]
x = F.interpolate(phantom, size=(SIZE, SIZE), mode="area")

# %%
# Total variation is made for images that are flat between edges.
figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="constrained")
for row, (words, title) in zip(axes, (("radial", "MRI, 15 %"), ("radon", "CT, 15 %")), strict=True):
    operator = make_operator(words, ratio=0.15, image_size=(SIZE, SIZE))
    y = operator(x)
    images = {"original": x}
    images |= {name: build_method(name, 0.15).reconstruct(y, operator).clamp(0, 1) for name in ("pinv", "tv")}
    for place, (name, image) in zip(row, images.items(), strict=True):
        place.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
        place.set_title(title if name == "original" else f"{name}, {psnr(image, x).item():.1f} dB")
        place.axis("off")
