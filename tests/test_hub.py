"""Networks on the Hugging Face Hub, whose part a server on this machine plays."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

import cs_models
from cs_models.cli.main import main as command
from cs_models.errors import UserError
from cs_models.evaluation.report.cards import RESULTS, read_figures
from cs_models.evaluation.report.hub_card import hub_card
from cs_models.networks.unfolding.coast import COASTConfig, COASTModule
from cs_models.zoo import hub
from cs_models.zoo.methods import zoo

COMMIT = "a" * 40


class StandIn(BaseHTTPRequestHandler):
    """The few answers of the Hub that an upload of small files and a download need."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (each test has a class of its own)

    def log_message(self, format: str, *words: object) -> None:
        """Nothing."""

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/user/net"
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            found: dict[str, object] = {"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT}
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            found = {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
        else:
            found = {"url": address, "name": "user/net", "id": "1"}
        self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """The files of the only repository of a Hub on this machine, with an empty cache beside it."""
    handler = type("Handler", (StandIn,), {"files": {}})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("HF_TOKEN", "none")
    yield handler.files  # type: ignore[attr-defined]
    running.shutdown()
    running.server_close()


@pytest.fixture
def network() -> COASTModule:
    return COASTModule(COASTConfig(layers=1, features=4)).eval()


def test_a_network_goes_up_and_comes_back(server: dict[str, bytes], network: COASTModule) -> None:
    assert hub.push(network, "user/net", hub_card("r_coast")).startswith("http://127.0.0.1")
    assert server.keys() == {"model.safetensors", "config.json", "README.md"}
    with pytest.raises(UserError, match=r"not in the local cache.*download=True"):
        cs_models.load("user/net")
    fetched = cs_models.load("user/net", download=True)
    assert fetched.settings() == network.settings()
    server.clear()  # from now on only the cache has it
    assert cs_models.load("user/net").settings() == network.settings()


def test_what_the_hub_does_not_have(server: dict[str, bytes], network: COASTModule) -> None:
    with pytest.raises(UserError, match="cannot fetch 'user/other'"):
        cs_models.load("user/other", download=True)
    server["model.safetensors"] = b"no checkpoint"
    with pytest.raises(UserError, match="safetensors"):
        cs_models.load("user/net", download=True)


def test_a_folder_is_a_repository_too(network: COASTModule, tmp_path: Path) -> None:
    hub.SharedNetwork(network).save_pretrained(tmp_path / "net")
    again = hub.SharedNetwork.from_pretrained(str(tmp_path / "net")).module
    assert torch.equal(next(again.parameters()), next(network.parameters()))
    assert ModelCard.load(tmp_path / "net/README.md").data.library_name == "cs-models"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("idm") else name for name in sorted(zoo())]
)
def test_cards_of_shipped_networks(name: str) -> None:
    card = ModelCard(str(hub_card(name)))
    figures = [one for one in read_figures(RESULTS) if one.method == name]
    results = [(one.dataset_name, one.metric_value) for one in card.data.eval_results if one.metric_type == "psnr"]
    assert results == [(one.dataset, round(one.psnr_db, 4)) for one in figures]
    assert len(results) >= 3
    assert (card.data.license, card.data.library_name) == ("mit", "cs-models")
    # What is said here and in checkpoints/README.md is the same, word for word.
    _, _, facts = card.text.partition("licence.\n\n")
    assert facts.strip() in (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert "Trained on" in facts


def test_what_a_card_says_of_use_runs(network: COASTModule, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(cs_models, "load", lambda name, download: asked.append((name, download)) or network)
    names: dict[str, torch.Tensor] = {}
    code = hub_card("r_coast", "user/net").text.split("```")[1].removeprefix("python\n")
    exec(code.replace("256", "40"), names)
    assert asked == [("user/net", True)]
    assert names["estimate"].shape == names["x"].shape


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["hub", "card", "r_coast", "--out", str(tmp_path / "new" / "README.md")]) == 0
    assert ModelCard.load(tmp_path / "new/README.md").data.model_name == "r_coast"
    assert command(["hub", "card", "r_cost"]) == 2
    assert "did you mean 'r_coast'?" in capsys.readouterr().err
