"""
The memory of invertible wiring
===============================

Training keeps the activations of every layer, so that its memory grows with their number T. Wired invertibly, the
layers are run backwards instead, and what is kept does not depend on T.
"""

# %%
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from cs_models.networks.invertible import InvertibleSequence

SIZE = 64


def kept(layers: int, invertible: bool) -> float:
    """Mebibytes that the forward pass keeps for the backward pass."""
    make = [
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(layers)
    ]
    chain = InvertibleSequence(make)
    chain.invertible = invertible
    weights = {parameter.untyped_storage().data_ptr() for parameter in chain.parameters()}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.rand(1, 8, SIZE, SIZE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = chain(x, x)
    del result
    return sum(storages.values()) / 2**20


# %%
steps = (1, 2, 4, 8, 16)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for invertible, label in ((False, "plain"), (True, "invertible")):
    axes.plot(steps, [kept(count, invertible) for count in steps], marker="o", label=label)
axes.set(xlabel="layers T", ylabel="kept for the backward pass, MiB", ylim=(0, None))
axes.grid(alpha=0.3)
axes.legend()
