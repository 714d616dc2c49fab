"""The page that reconstructs in the browser, as one file: ``python docs/browser/build.py --out try.html``.

Networks, sampling, photographs and ONNX Runtime Web are inside, so that it opens from disk and asks no server for
anything. The runtime comes from npm once, and is checked against the digest below; it lies in ``docs/browser/.npm``.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cs_models.errors import UserError, first_line, report
from cs_models.evaluation.leaderboard import PARTS
from cs_models.evaluation.operations import CountOperations
from cs_models.files import replacing
from cs_models.networks.unfolding.module import UnfoldingModule
from cs_models.operators import BlockOperator
from cs_models.solvers import tv
from cs_models.solvers.linear import LinearEstimate
from cs_models.zoo.graphs import check_exportable, trace_any
from cs_models.zoo.methods import load
from datamodules.catalog import load_set

HERE = Path(__file__).resolve().parent
PACKAGE = "onnxruntime-web@1.30.0"
DIGEST = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
RUNTIME, WASM = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"
# What a network is called on the page.
TITLES = {
    "r_coast": "R-COAST",
    "scnet": "SCNet",
    "ista_net_pp": "ISTA-Net++",
    "ista_net_plus": "ISTA-Net+",
}
NETWORKS = ("r_coast", "ista_net_pp", "scnet")
RATIOS = (0.1, 0.2, 0.3)
PHOTOS = {"camera": "A photographer", "chelsea": "A cat", "coffee": "A cup of coffee"}
# Of the page in bytes, which whoever opens it has to wait for.
LARGEST = 15_000_000
# Weights of fewer numbers stay in the graph.
SMALL = 64


@dataclass
class Pool:
    """Numbers of all networks, one after the other, each at a multiple of 4 bytes.

    Attributes:
        content: what is in it.
    """

    content: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> int:
        """Put bytes into the pool; returns where they begin."""
        place = len(self.content)
        self.content += data + bytes(-len(data) % 4)
        return place


def runtime(folder: Path) -> tuple[bytes, bytes]:
    """ONNX Runtime Web, its script and its WebAssembly, from npm's archive.

    Args:
        folder: where the archive lies or will lie.

    Raises:
        UserError: if npm or its registry is not at hand, or the archive is another one.
    """
    name = PACKAGE.replace("@", "-") + ".tgz"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError(f"the page needs {PACKAGE}, which npm fetches; install npm") from None
        except subprocess.CalledProcessError as error:
            reason = next(iter(error.stderr.strip().splitlines()), "it gave no reason")
            raise UserError(f"npm could not fetch {PACKAGE}: {reason}") from error
    archive = (folder / name).read_bytes()
    if hashlib.sha512(archive).hexdigest() != DIGEST:
        raise UserError(f"{folder / name} is not the {PACKAGE} that was tested; delete it and try again")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        script, wasm = (files.extractfile(member) for member in (RUNTIME, WASM))
        assert script is not None
        assert wasm is not None
        return script.read(), wasm.read()


def graph(module: UnfoldingModule, operator: BlockOperator) -> tuple[bytes, bytes]:
    """A network for any matrix as an ONNX graph, and the weights that it finds in the file ``weights``."""
    import onnx
    from onnx.external_data_helper import set_external_data

    program = torch.onnx.export(
        trace_any(module, operator),
        dynamo=True,
        input_names=["y", "size", "matrix", "ratio"],
        output_names=["x"],
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    weights = Pool()
    for tensor in model.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(data) > 4 * SMALL:
            place = weights.add(data)
            tensor.raw_data = b"outside"  # which `set_external_data` asks for
            set_external_data(tensor, "weights", offset=place, length=len(data))
            tensor.ClearField("raw_data")
    _forget_sources(model)
    return model.SerializeToString(), bytes(weights.content)


def product_graph() -> bytes:
    """An ONNX graph that multiplies two matrices, which is many times faster than a loop of JavaScript."""
    from onnx import TensorProto, helper

    a, b, c = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("abc", ("mk", "kn", "mn"), strict=True)
    )
    body = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def _forget_sources(model: Any) -> None:
    """Leave out where in which file each node was traced from."""
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")


def sampling(module: UnfoldingModule, ratio: float, pool: Pool, first: tuple[int, BlockOperator]) -> dict[str, Any]:
    """Where the matrix and the linear estimator of a ratio are in the pool.

    Args:
        module: the network.
        ratio: of the measurements.
        pool: to which the estimator is added.
        first: where the matrix of the network's largest ratio is, and its operator; smaller ones are its first rows.
    """
    place, largest = first
    operator = module.default_operator(ratio, (64, 64))
    assert isinstance(operator, BlockOperator)
    rows, n = operator.matrix.shape
    torch.testing.assert_close(operator.matrix, largest.matrix[:rows], rtol=0, atol=1e-6)
    estimator = LinearEstimate().estimator(operator).T.numpy().astype(np.float16)
    return {
        "ratio": ratio,
        "matrix": [place, rows * n],
        "estimator": [pool.add(estimator.tobytes()), rows * n],
    }


def network(name: str, ratios: Sequence[float], pool: Pool, known: dict[str, Any]) -> dict[str, Any]:
    """What the page is told of a network, whose numbers go into the pool.

    Args:
        name: of the zoo, or a checkpoint's path.
        ratios: that the page offers.
        pool: of all networks.
        known: sampling that is in the pool already, by the matrix of the largest ratio.
    """
    module = load(name)
    ratios = module.carried.ratios() or ratios
    operator = module.default_operator(max(ratios), (66, 66))
    check_exportable(module, operator, name)
    assert isinstance(module, UnfoldingModule)
    assert isinstance(operator, BlockOperator)
    assert operator.orthonormal
    data = operator.matrix.numpy().tobytes()
    key = hashlib.sha256(data).hexdigest()
    if key not in known:
        first = pool.add(data), operator
        known[key] = [sampling(module, ratio, pool, first) for ratio in ratios]
    proto, weights = graph(module, operator)
    x = torch.zeros(1, 1, 66, 66)
    with CountOperations() as counter:
        module.reconstruct(operator(x), operator)
    return {
        "title": TITLES.get(name, Path(name).stem),
        "graph": [pool.add(proto), len(proto)],
        "weights": [pool.add(weights), len(weights)],
        "multiplications": counter.total // 2 / x.numel(),
        "sampling": known[key],
    }


def photographs() -> list[dict[str, str]]:
    """The held-out photographs that come with scikit-image, as PNG files in the text of the page."""
    found = []
    for name, image in load_set("bundled"):
        file = io.BytesIO()
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(file, "PNG", optimize=True)
        found.append({"title": PHOTOS.get(name, name), "source": "data:image/png;base64," + text(file.getvalue())})
    return found


def total_variation() -> dict[str, float]:
    """The settings of the solver and its constants, which the page's own follows."""
    solver = tv.TotalVariation()
    operator = BlockOperator.gaussian(0.1, (33, 33))
    return {
        "weight": solver.weight_for(operator, operator(torch.zeros(1, 1, 33, 33))),
        "iterations": solver.iterations,
        "tolerance": solver.tolerance,
        "jump": tv.JUMP,
        "coupling": tv.COUPLING,
        "over_relaxation": tv.OVER_RELAXATION,
        "smooth_weight": tv.SMOOTH_WEIGHT,
        "smooth_iterations": tv.SMOOTH_ITERATIONS,
    }


def worker(script: bytes) -> str:
    """The script that computes: ONNX Runtime Web as ``runtime``, and ours after it.

    Of a page that is opened from disk, a worker may be no module and may import none, so that all of it is one script.
    """
    code, count = re.subn(r"export\s*\{([^}]*)\};", _returned, script.decode().replace("import.meta.url", '"blob:"'))
    if count != 1:
        raise UserError(f"{PACKAGE} exports its names in another way than the version that was tested")
    parts = [f"const runtime = (() => {{\n{code}\n}})();\n"]
    parts += [(HERE / name).read_text(encoding="utf-8") for name in ("sampling.js", "worker.js")]
    return "".join(parts)


def _returned(exports: re.Match[str]) -> str:
    pairs = [pair.split(" as ") for pair in exports[1].split(",")]
    return "return {" + ", ".join(f"{names[-1].strip()}: {names[0].strip()}" for names in pairs) + "};"


def planes(data: bytes | bytearray) -> bytes:
    """The first byte of every four, then the second ones, and so on: the form in which numbers compress best."""
    return b"".join(bytes(data[place::4]) for place in range(4))


def text(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def build(
    out: Path,
    networks: Sequence[str] = NETWORKS,
    ratios: Sequence[float] = RATIOS,
    photos: Sequence[dict[str, str]] | None = None,
) -> Path:
    """Write the page.

    Args:
        out: the file.
        networks: unfolding networks of the zoo, or checkpoints, that take blocks of one size.
        ratios: for networks that take any.
        photos: see `photographs`, which gives those of the page by default.

    Raises:
        UserError: if the runtime cannot be had, a network cannot be exported, or the page is too large.
    """
    script, wasm = runtime(HERE / ".npm")
    pool, known = Pool(), dict[str, Any]()
    described = {Path(name).stem: network(name, ratios, pool, known) for name in networks}
    product = product_graph()
    index = {
        "block": 33,
        "networks": described,
        "photos": photographs() if photos is None else photos,
        "product": [pool.add(product), len(product)],
        "tv": total_variation(),
    }
    parts = {
        "style": "".join(path.read_text(encoding="utf-8") for path in (PARTS / "base.css", HERE / "page.css")),
        "index": json.dumps(index).replace("<", "\\u003c"),
        "pool": text(gzip.compress(planes(pool.content), mtime=0)),
        "wasm": text(gzip.compress(wasm, mtime=0)),
        "worker": text(gzip.compress(worker(script).encode(), mtime=0)),
        "page": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"[{name}]", part, 1)
    if len(page) > LARGEST:
        raise UserError(f"the page would have {len(page) / 1e6:.1f} MB, over {LARGEST / 1e6:g}; take fewer networks")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the page that reconstructs in the browser.")
    parser.add_argument("--out", type=Path, default=Path("build/try.html"))
    options = parser.parse_args(arguments)
    try:
        path = build(options.out)
    except UserError as error:
        return report(error)
    except OSError as error:
        return report(f"cannot write '{options.out}': {first_line(error)}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
