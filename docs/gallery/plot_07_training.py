"""
Training a small network in a minute
====================================

COAST with two layers learns from eleven photographs to reconstruct from a tenth of the measurements, and is compared
with total variation on three photographs that it never sees. ``cs-models train`` does the same for hours, on several
GPUs, with checkpoints and logs.
"""

# %%
# What is measured are the principal components of blocks. The last convolution of each layer is zero in the beginning,
# so that training starts from the pseudo-inverse.
import matplotlib.pyplot as plt
import torch

from cs_models.metrics import psnr
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.networks.unfolding.module import UnfoldingTraining
from cs_models.operators import Sampling
from cs_models.zoo.methods import build_method
from datamodules.catalog import load_set
from datamodules.patches import PatchDataModule

SIZE = 99
STEPS = 300
CROP = 66
torch.manual_seed(0)
training = UnfoldingTraining(sampling=Sampling(ratios=(0.1,), matrices="pca"))
network = COASTModule(COASTConfig(layers=2, features=16, modulation="none"), training)
for layer in network.network.layers:
    torch.nn.init.zeros_(layer.tail.weight)
    torch.nn.init.zeros_(layer.tail.bias)

# %%
# What it has to pass.
x = torch.cat([image[None, :, 80 : 80 + SIZE, 80 : 80 + SIZE] for _, image in load_set("bundled")])
operator = network.default_operator(0.1, (SIZE, SIZE))
y = operator(x)


def score(estimate: torch.Tensor) -> float:
    """Mean PSNR of the three photographs in dB."""
    return psnr(estimate.clamp(0, 1), x).mean().item()


others = {name: score(build_method(name, 0.1).reconstruct(y, operator)) for name in ("pinv", "tv")}
print(", ".join(f"{name}: {value:.2f} dB" for name, value in others.items()))

# %%
# Every step measures a batch of patches; the loss is the network's own.
data = PatchDataModule(train_sets=["bundled-train"], crop_size=CROP, batch_size=4, batches_per_epoch=STEPS)
data.setup("fit")
optimiser = torch.optim.Adam(network.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
curve = {0: score(network.reconstruct(y, operator))}
for step, batch in enumerate(data.train_dataloader()):
    patches = batch.float() / 255
    sampling = network.training_operator((CROP, CROP), step)
    loss = network.train().training_loss(patches, sampling(patches), sampling, step).log()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    if (step + 1) % max(1, STEPS // 10) == 0:
        curve[step + 1] = score(network.reconstruct(y, operator))

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(curve.keys(), curve.values(), marker="o", label="COAST, two layers")
axes.axhline(others["tv"], color="black", linestyle="--", label="total variation")
axes.axhline(others["pinv"], color="black", linestyle=":", label="pseudo-inverse")
axes.set(xlabel="training step", ylabel="PSNR in dB")
axes.grid(alpha=0.3)
axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3)
print(f"after {STEPS} steps: {curve[STEPS]:.2f} dB")
