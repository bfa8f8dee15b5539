"""Messages between the nodes of a run: orders from node 0, exit codes from all; detects lost nodes.

Each node has one TCP connection to node 0 for short JSON messages. There is no authentication, as in
torch.distributed: the network between the machines must be trusted.
"""

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from foldwise.errors import ProcessFailed, Refusal, exit_code
from foldwise.processes.exits import describe_exit, raise_stopped
from foldwise.processes.group import Group
from foldwise.processes.nodes import Node

# Seconds to wait for all nodes; TCP keepalive: seconds of silence before a probe, seconds between probes, and probes
# without answer. A machine that lost power is detected after half a minute.
GATHERING = 300
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
LONGEST = 2**20  # bytes per message


class LostNodeError(ProcessFailed):
    """Another node has ended, so the run ends."""


class Team:
    """Connections of this node: node 0 to all others, the others to node 0; none on a single machine."""

    def __init__(self, *links: Connection) -> None:
        self.links = list(links)

    def send(self, **message: Any) -> None:
        """Send a message over all connections; lost nodes are only detected by `receive`."""
        for link in self.links:
            with suppress(OSError):
                link.send_bytes(json.dumps(message).encode())

    def receive(self, link: Connection | None = None) -> dict[str, Any]:
        """Wait for the next message, from node 0 or over `link`.

        Raises:
            LostNodeError: the node is gone or failed.
            Stopped: a signal stopped the node.
        """
        try:
            message = json.loads((link or self.links[0]).recv_bytes(LONGEST))
        except (EOFError, OSError, ValueError):
            raise LostNodeError("another node of this run is gone") from None
        code = message.get("code", 0)
        raise_stopped(code)
        if code:
            raise LostNodeError(f"another node of this run {describe_exit(code, 'its own output')}", code)
        return message

    def barrier(self) -> None:
        """Wait until all nodes get here; raises like `receive`."""
        self.send(code=0)
        for link in self.links:
            self.receive(link)

    def run(self, group: Group, watch: Callable[[], None] | None = None) -> int:
        """Wait for the group on all nodes; return the exit code of this node's part.

        Calls `watch` every second. Raises like `receive` if another node's part fails.
        """
        silent, code = list(self.links), None
        try:
            while silent or code is None:
                ready = wait([*group.sentinels, *silent], 1 if watch else None)
                if watch:
                    watch()
                if code is None and (code := group.poll()) is not None:
                    self.send(code=code)
                    if code:
                        return code
                for link in [link for link in silent if link in ready]:
                    self.receive(link)
                    silent.remove(link)
        except BaseException as error:
            self.leave(error)  # before ending the group, which takes a while
            raise
        return 0

    def leave(self, error: BaseException) -> None:
        """Send the exit code of this node."""
        self.send(code=getattr(error, "exit_code", None) or (exit_code(error) if isinstance(error, Exception) else 130))


@contextmanager
def gather(node: Node) -> Iterator[Team]:
    """Connect the nodes; if this one fails, send its exit code to the others.

    Raises:
        Refusal: not all nodes connected within five minutes.
    """
    links = [] if node.count == 1 else _accept(node) if node.rank == 0 else [_connect(node)]
    team = Team(*links)
    try:
        yield team
    except BaseException as error:
        team.leave(error)
        raise
    finally:
        for link in links:
            link.close()


def _accept(node: Node) -> list[Connection]:
    """Accept the other nodes, on node 0."""
    print(f"waiting for the other nodes ({node.count - 1}) at {node.address}:{node.port}", file=sys.stderr)
    links: dict[int, Connection] = {}
    deadline = time.monotonic() + GATHERING
    with socket.create_server(("", node.port), backlog=node.count) as server:
        while len(links) < node.count - 1:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                link = _link(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, node.count)) - links.keys())
                raise Refusal(f"the nodes {missing} did not connect within {GATHERING} seconds") from None
            try:
                job, rank = json.loads(link.recv_bytes(LONGEST))
            except (EOFError, OSError, ValueError):
                job = None
            if job == node.job:
                links[int(rank)] = link
            else:  # not of this run
                link.close()
    return list(links.values())


def _connect(node: Node) -> Connection:
    """Connect to node 0."""
    deadline = time.monotonic() + GATHERING
    while True:
        try:
            link = _link(socket.create_connection((node.address, node.port), timeout=10))
        except OSError as error:  # node 0 is not listening yet
            if time.monotonic() > deadline:
                raise Refusal(f"node 0 does not answer at {node.address}:{node.port} ({error})") from None
            time.sleep(0.5)
            continue
        link.send_bytes(json.dumps([node.job, node.rank]).encode())
        return link


def _link(peer: socket.socket) -> Connection:
    """A message connection with keepalive."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(peer.detach())
