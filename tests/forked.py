"""Commands of the project in processes of their own, forked from one that has imported what they need.

To start Python and import torch and Lightning takes longer than most of what is tested in such a process. What forked
them runs nothing itself: no threads, no state, no accelerator. Windows cannot fork: there they begin with nothing.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import runpy
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tests.conftest import REPOSITORY, collect_rarely

MAINS = {
    "eval.py": "cs_models.cli.evaluate",
    "train.py": "cs_models.cli.train",
    "tests/rehearsal.py": "tests.rehearsal",
}

METHOD: Literal["spawn", "forkserver"] = "spawn" if sys.platform == "win32" else "forkserver"
"""How `multiprocessing`, torch and Lightning start functions from the same server, where there is one."""

SERVER = multiprocessing.get_context(METHOD)

if METHOD == "forkserver":
    SERVER.set_forkserver_preload(
        [
            "tests.test_long_runs",
            "cs_models.evaluation.loop",
            "cs_models.evaluation.report.tables",
            "cs_models.networks.unfolding.coast",
            "cs_models.training.sharding",
            "cs_models.networks.diffusion.idm",
            "lightning_fabric.strategies",
            "matplotlib.figure",
            "pytorch_lightning.cli",
            "skimage.metrics",
            "timm.utils",
            "torch._dynamo",
        ]
    )


def start(program: str, words: Sequence[str], out: Path, errors: Path | None = None, **environment: str) -> BaseProcess:
    """Begin ``python PROGRAM WORDS`` in the repository's folder.

    Args:
        program: a script of `MAINS`.
        words: its arguments.
        out: a file for what it prints, or a named pipe.
        errors: the same for its error stream; `out` where it is not given.
        environment: variables beside those of this process.
    """
    variables = {**os.environ, **environment}
    process = SERVER.Process(target=_run, args=(program, words, out, errors or out, variables))
    process.start()
    return process


def run(program: str, words: Sequence[str], out: Path, seconds: float = 300, **environment: str) -> tuple[int, str]:
    """Exit status of ``python PROGRAM WORDS``, and all that it and what it started printed."""
    process = start(program, words, out, **environment)
    return finished(process, seconds), out.read_text()


def finished(process: BaseProcess, seconds: float) -> int:
    """Exit status of a process, which is killed if it takes longer than so many seconds."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


@contextmanager
def interpreter() -> Iterator[str]:
    """What stands for ``python`` in a shell's command line, as long as the context lasts."""
    with TemporaryDirectory() as folder:  # of a short name, as addresses of sockets have to be
        address, client = Path(folder, "socket"), Path(folder, "client.py")
        client.write_text(CLIENT)
        server = SERVER.Process(target=_serve, args=(address,))
        server.start()
        try:
            while not address.exists():
                assert server.is_alive(), "it ended before it could be called"
                time.sleep(0.02)
            yield shlex.join([sys.executable, "-ISE", str(client), str(address)])
        finally:
            server.kill()
            server.join()


CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    call = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [call], [1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(9) or 1))
"""


def _serve(address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{address}.new")
        server.listen(64)
        Path(f"{address}.new").rename(address)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                break
            connection.close()
    call, streams, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while more := connection.recv(1 << 16):
        call += more
    program = os.fork()
    if program:
        connection.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]))
        return
    connection.close()
    (path, *words), folder, variables = json.loads(call)
    _become(variables, folder, streams)
    if path == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [path, *words], str(Path(path).parent)
        runpy.run_path(path, run_name="__main__")


def _run(program: str, words: list[str], out: Path, errors: Path, variables: Mapping[str, str]) -> None:
    if METHOD == "forkserver":
        os.setsid()
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND) for path in (out, errors)]
    _become(variables, REPOSITORY, files)
    sys.argv = [program, *words]
    sys.exit(importlib.import_module(MAINS[program]).main(words))


def _become(variables: Mapping[str, str], folder: Path | str, streams: Sequence[int]) -> None:
    """Take over what a started process would have: variables, folder, standard output and error."""
    collect_rarely()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream, number)
    faulthandler.enable(2)  # a crash says where
    if METHOD == "forkserver":
        multiprocessing.set_start_method("fork", force=True)  # for data workers, as in any other process
    import torch
    from lightning_fabric.utilities import rank_zero

    torch.set_num_threads(1)
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # Lightning looks once, when it is imported
