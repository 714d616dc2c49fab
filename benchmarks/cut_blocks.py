"""How well methods reconstruct blocks that the border of an image cuts, against the same pixels in whole blocks.

An image whose sides are no multiple of B is measured as if zeros surrounded it, so that a block at its border has the
measurements of a whole block for fewer pixels. "whole" is the PSNR of these pixels in a crop that whole blocks fill,
"cut" that in the same crop without its last rows and columns, and "gain" the difference: means over the crops.

    python benchmarks/cut_blocks.py --methods scnet,r_coast
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

from cs_models.evaluation.report.markdown import markdown_table
from cs_models.metrics import psnr
from cs_models.operators import make_operator
from cs_models.reconstruction import Reconstructor
from cs_models.zoo.methods import build_method, parse_methods
from datamodules.catalog import load_set

BLOCK = 33


def reconstruct(method: Reconstructor, x: Tensor, ratio: float) -> Tensor:
    operator = make_operator(f"block:{BLOCK}", ratio, (x.shape[-2], x.shape[-1]))
    return method.reconstruct(operator(x), operator).clamp(0, 1)


def psnr_at_border(estimate: Tensor, x: Tensor, inner: int, side: int) -> float:
    """PSNR in dB of the pixels within `side` rows and columns, but for the first `inner` of both."""
    border = torch.ones(side, side, dtype=torch.bool)
    border[:inner, :inner] = False
    return psnr(estimate[..., :side, :side][..., border], x[..., :side, :side][..., border]).item()


def line(name: str, options: argparse.Namespace) -> list[str]:
    ((spec, _),) = parse_methods([name], [options.ratio])
    method = build_method(spec, options.ratio)
    whole, cut = [], []
    side = options.blocks * BLOCK
    rest, inner = side - options.cut, side - BLOCK
    for _, image in load_set(options.set, options.data_dir, "luminance"):
        for top in range(0, image.shape[-2] - side + 1, options.stride):
            for left in range(0, image.shape[-1] - side + 1, options.stride):
                x = image[None, :, top : top + side, left : left + side]
                whole.append(psnr_at_border(reconstruct(method, x, options.ratio), x, inner, rest))
                x = x[..., :rest, :rest]
                cut.append(psnr_at_border(reconstruct(method, x, options.ratio), x, inner, rest))
    gains = [ours - theirs for ours, theirs in zip(cut, whole, strict=True)]
    return [name, *(f"{statistics.fmean(values):.2f}" for values in (whole, cut, gains)), str(len(cut))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="linear,pnp,scnet,r_coast,ista_net_pp")
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--set", default="bundled")
    parser.add_argument("--data_dir")
    parser.add_argument("--blocks", type=int, default=4, help="along each side of a crop")
    parser.add_argument("--cut", type=int, default=11, help="rows and columns of the last blocks that are missing")
    parser.add_argument("--stride", type=int, default=60, help="between crops")
    options = parser.parse_args()
    lines = [line(name, options) for name in options.methods.split(",")]
    print(markdown_table(["method", "whole, dB", "cut, dB", "gain, dB", "crops"], lines))


if __name__ == "__main__":
    main()
