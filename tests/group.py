"""A few processes that stay up and run functions together: importing torch once is dear enough."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from cluster.ports import free_port

TIMEOUT = timedelta(seconds=300)
"""Imports alone were seen to take 100 s with a dozen busy processes on 2 cores."""


class ProcessGroup:
    """As many processes as were asked for at most; each runs the same function as one rank of a group."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def run(self, function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
        """What ``function(rank, world_size, *arguments)`` returns on each rank."""
        while len(self._pipes) < world_size:
            self._start()
        port = free_port()
        for rank in range(world_size):
            self._pipes[rank].send((function, rank, world_size, port, arguments))
        deadline = time.monotonic() + TIMEOUT.total_seconds()
        answers = [_receive(pipe, deadline) for pipe in self._pipes[:world_size]]
        failures = [text for is_good, text in answers if not is_good]
        if failures:
            raise AssertionError("\n".join(failures))
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()


def _receive(pipe: Connection, deadline: float) -> Any:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        return False, f"no answer within {TIMEOUT}"
    return pipe.recv()


def _serve(pipe: Connection) -> None:
    while True:
        try:
            function, rank, world_size, port, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, _join_and_run(function, rank, world_size, port, arguments)
        except BaseException:  # noqa: BLE001 - told to the test
            answer = False, f"rank {rank}:\n{traceback.format_exc()}"
        pipe.send(answer)


def _join_and_run(function: Callable[..., Any], rank: int, world_size: int, port: int, arguments: Any) -> Any:
    from torch import distributed

    if world_size == 1:
        return function(rank, world_size, *arguments)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in (variables | address).items()}
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        return function(rank, world_size, *arguments)
    finally:
        distributed.destroy_process_group()
        for name in variables | address:
            del os.environ[name]
