"""
Training from measurements alone
================================

Who measures with a device of their own has no images to learn from. A network can learn from what was measured: what
one part of the rows of the matrix saw has to follow from the other part.
"""

# %%
# A set of measurements, as a device would deliver it. ``cs-models measure`` makes it of photographs, to try this out;
# no image is in it.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from cs_models.cli.measure import main as measure
from cs_models.metrics import psnr
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.networks.unfolding.scnet import SCNetConfig, SCNetModule
from cs_models.training.supervision import unsupervised_loss
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set
from datamodules.measurements import MeasurementBatches, read_measurements

SIZE = 99
STEPS = 240
RATIO = 0.5
with tempfile.TemporaryDirectory() as folder:
    words = f"bundled-train --operator block --ratio {RATIO} --shape 33,33 --out {Path(folder) / 'set'}"
    measure(words.split())
    measured = read_measurements(Path(folder) / "set")

# %%
# Photographs that show how good the network is. Training never sees them.
x = torch.cat([image[None, :, 80 : 80 + SIZE, 80 : 80 + SIZE] for _, image in load_set("bundled")])
operator = measured.operator.resized(SIZE, SIZE)
y = operator(x)


def score(estimate: torch.Tensor) -> float:
    """Mean PSNR of the three photographs in dB."""
    return psnr(estimate.clamp(0, 1), x).mean().item()


# %%
# A small SCNet; `supervision` says what its loss sees.
torch.manual_seed(0)
network = SCNetModule(SCNetConfig(layers=4, features=16), UnfoldingTraining(supervision="splitting"))
optimiser = torch.optim.Adam(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS)
batches = MeasurementBatches(measured, batch_size=8, batches_per_epoch=STEPS, seed=0)
curve = {}
for step in range(STEPS):
    loss = unsupervised_loss(network.train(), batches[step], measured.operator, step)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    if (step + 1) % max(1, STEPS // 12) == 0:
        curve[step + 1] = score(network.reconstruct(y, operator))

# %%
# No image was needed. Longer trainings, other losses and noise: docs/unsupervised.md.
images = {"original": x, "pseudo-inverse": build_method("pinv", RATIO).reconstruct(y, operator)}
images["network"] = network.reconstruct(y, operator)
figure, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained", width_ratios=(1.6, 1, 1, 1))
axes[0].plot(curve.keys(), curve.values(), marker="o")
axes[0].set(xlabel="training step", ylabel="PSNR in dB")
axes[0].grid(alpha=0.3)
for place, (name, image) in zip(axes[1:], images.items(), strict=True):
    place.imshow(image[1, 0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
    place.set_title(name if name == "original" else f"{name}, {psnr(image.clamp(0, 1), x)[1].item():.1f} dB")
    place.axis("off")
