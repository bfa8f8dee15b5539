"""Messages between the nodes of a run: orders of node 0, exit codes of all; a lost node is detected.

One TCP connection from each node to node 0 carries short JSON messages. As between the ranks of torch.distributed there
are no passwords: the network between the machines must be one to trust.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from foldwise.errors import ProcessFailed, Refusal, exit_code
from foldwise.processes.exits import describe_exit, raise_stopped
from foldwise.processes.group import Group
from foldwise.processes.nodes import Node

# Seconds until all nodes have started; of silence until a probe, between probes, and how many may stay unanswered: a
# machine that lost its power is detected after half a minute.
GATHERING = 300
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
LONGEST = 2**20  # bytes of a message


class LostNodeError(ProcessFailed):
    """Another node has ended, and with it the run."""


class Team:
    """The other nodes as this one sees them: all of them from node 0, node 0 from the others, none on one machine."""

    def __init__(self, *links: Connection) -> None:
        self.links = list(links)

    def send(self, **message: Any) -> None:
        """Send a message to all; `receive` detects one that is gone."""
        for link in self.links:
            with suppress(OSError):
                link.send_bytes(json.dumps(message).encode())

    def receive(self, link: Connection | None = None) -> dict[str, Any]:
        """Wait for the next message, from node 0 or over the `link`.

        Raises:
            LostNodeError: the node is gone, or sent that it ends.
            Stopped: a signal ends it, and so all.
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
        """Wait until all have come to this point, or raise as `receive`."""
        self.send(code=0)
        for link in self.links:
            self.receive(link)

    def run(self, group: Group) -> int:
        """Wait until the group has ended here and on all nodes; its first exit code that is not 0, or 0.

        Raises as `receive` when another node's part of the group fails.
        """
        silent, code = list(self.links), None
        try:
            while silent or code is None:
                ready = wait([*group.sentinels, *silent])
                if code is None and (code := group.poll()) is not None:
                    self.send(code=code)
                    if code:
                        return code
                for link in [link for link in silent if link in ready]:
                    self.receive(link)
                    silent.remove(link)
        except BaseException as error:
            self.leave(error)  # before the group is ended here, which takes its time
            raise
        return 0

    def leave(self, error: BaseException) -> None:
        """Send the exit code with which this node will end."""
        self.send(code=getattr(error, "exit_code", None) or (exit_code(error) if isinstance(error, Exception) else 130))


@contextmanager
def gather(node: Node) -> Iterator[Team]:
    """Connect this node with the others; when it ends early, they learn its exit code.

    Raises:
        Refusal: they have not all come within five minutes.
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
    """The connections of the other nodes, on node 0."""
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
                raise Refusal(f"the nodes {missing} did not come within {GATHERING} seconds") from None
            try:
                job, rank = json.loads(link.recv_bytes(LONGEST))
            except (EOFError, OSError, ValueError):
                job = None
            if job == node.job:
                links[int(rank)] = link
            else:  # a stranger at an open port
                link.close()
    return list(links.values())


def _connect(node: Node) -> Connection:
    """The connection to node 0, on another node."""
    deadline = time.monotonic() + GATHERING
    while True:
        try:
            link = _link(socket.create_connection((node.address, node.port), timeout=10))
        except OSError as error:  # node 0 does not listen yet
            if time.monotonic() > deadline:
                raise Refusal(f"node 0 does not answer at {node.address}:{node.port} ({error})") from None
            time.sleep(0.5)
            continue
        link.send_bytes(json.dumps([node.job, node.rank]).encode())
        return link


def _link(peer: socket.socket) -> Connection:
    """A connection for whole messages, which ends when the other machine does."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # macOS has other names, and defaults of hours
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(peer.detach())
