"""The card of a shipped network in the form of the Hugging Face Hub: facts that programs read, and the text."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cs_models.errors import UserError, nearest
from cs_models.evaluation.report.cards import RESULTS, Figures, card, read_figures
from cs_models.zoo.hub import LIBRARY, LICENSE
from cs_models.zoo.methods import zoo

USE = """\
Reconstructs images from compressed measurements `y = A x`. With `cs-models` installed:

```python
import torch
import cs_models

x = torch.rand(1, 1, 256, 256)  # images in [0, 1]
network = cs_models.load("{repository}", download=True)
operator = network.default_operator({ratio}, (256, 256))
estimate = network.reconstruct(operator(x), operator)
```

Training never saw the images of the figures below. Weights are under the MIT licence."""


def hub_card(name: str, repository: str = "USER/NAME") -> ModelCard:
    """The card of a network of the zoo: licence, data, training, and a result for every figure.

    Args:
        name: of the network.
        repository: on the Hub, from which the card says how to load it.

    Raises:
        UserError: for a name that is not in the zoo.
    """
    files = zoo()
    if name not in files:
        raise UserError(f"no shipped network '{name}'{nearest(name, files)}")
    figures = [one for one in read_figures(RESULTS) if one.method == name]
    data = ModelCardData(
        license=LICENSE,
        library_name=LIBRARY,
        pipeline_tag="image-to-image",
        tags=["compressed-sensing", "inverse-problems"],
        model_name=name,
        eval_results=_results(figures),
    )
    ratio = min((one.ratio for one in figures), default=0.1)
    text = card(name, files[name], figures).replace("## ", "# ", 1)
    title, _, rest = text.partition("\n\n")
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{USE.format(ratio=ratio, repository=repository)}\n\n{rest}\n"
    )


def _results(figures: Sequence[Figures]) -> list[EvalResult]:
    metrics = (("psnr", "PSNR in dB", "psnr_db"), ("ssim", "SSIM", "ssim"))
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=one.dataset,
            dataset_name=one.dataset,
            dataset_config=f"ratio {one.ratio:g}, {one.operator}, {one.precision}",
            metric_type=kind,
            metric_name=title,
            metric_value=round(getattr(one, field), 4),
        )
        for one in figures
        for kind, title, field in metrics
    ]
