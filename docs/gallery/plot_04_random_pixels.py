"""
Random pixels and LASSO, in colour
==================================

The figures of many a tutorial: a tenth of the pixels are known, and the image is sparse in the discrete cosine
transform. Every channel is reconstructed by itself.
"""

# %%
import matplotlib.pyplot as plt

from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set

SIZE = 128
x = load_set("bundled", channels="rgb")[2][1][None, :, 40 : 40 + SIZE, 60 : 60 + SIZE]
operator = make_operator("pixel", ratio=0.1, image_size=(SIZE, SIZE))
y = operator(x)

# %%
# LASSO counts every coefficient alike. A penalty that grows with the frequency knows more of photographs.
images = {"original": x, "what is known": operator.adjoint(y)}
images |= {name: build_method(name, 0.1).reconstruct(y, operator).clamp(0, 1) for name in ("lasso", "weighted_l1")}

figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for place, (name, image) in zip(axes, images.items(), strict=True):
    place.imshow(image[0].permute(1, 2, 0).clamp(0, 1))
    place.set_title(name if name == "original" else f"{name}, {psnr(image, x).item():.2f} dB")
    place.axis("off")
