"""What the nodes of a run say to each other: node 0 what to do next, all how it went, and silence when one is gone.

One TCP connection from each node to node 0, which carries short JSON messages. As between the ranks of
torch.distributed there are no passwords: the network between the machines must be one to trust.
"""

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from foldwise.errors import ProcessFailed, Refusal, exit_code
from foldwise.processes.faults import describe_exit
from foldwise.processes.group import Group
from foldwise.processes.nodes import Node
from foldwise.processes.signals import Stopped, raise_stopped

# Seconds until all nodes have started; of silence until a machine is asked whether it is there, between questions, and
# how often it may not answer: one that lost its power is noticed after half a minute.
GATHERING = 300
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
LONGEST = 2**20  # bytes of a message


class LostNodeError(ProcessFailed):
    """Another node has ended, and with it the run."""


class Team:
    """The other nodes as this one sees them: all of them from node 0, node 0 from the others.

    Alone, on a single machine, there are no others, and every method is done at once.
    """

    def __init__(self, links: Sequence[Connection] = ()) -> None:
        self.links = list(links)

    def tell(self, **message: Any) -> None:
        """Send a message to all. One that is gone is noticed when it is listened to."""
        for link in self.links:
            with suppress(OSError):
                link.send_bytes(json.dumps(message).encode())

    def hear(self, link: Connection | None = None) -> dict[str, Any]:
        """Wait for the next message, of node 0 or over the `link`.

        Raises:
            LostNodeError: the node is gone, or it told that it ends.
            Stopped: a signal ends it; it ends all.
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

    def agree(self) -> None:
        """Wait until all have come to this point.

        Raises:
            LostNodeError, Stopped: one of them ends instead.
        """
        self.tell(code=0)
        for link in self.links:
            self.hear(link)

    def run(self, group: Group) -> int:
        """Wait until the group has ended here and on all nodes; the first exit code that is not 0, or 0.

        Raises:
            LostNodeError, Stopped: another node ends; its part of the group failed, or it is gone.
        """
        silent, code = list(self.links), None
        try:
            while silent or code is None:
                ready = wait([*group.sentinels, *silent])
                if code is None and (code := group.poll()) is not None:
                    self.tell(code=code)
                    if code:
                        return code
                for link in [link for link in silent if link in ready]:
                    self.hear(link)
                    silent.remove(link)
        except BaseException as error:
            self.leave(error)  # before the group is ended here, which takes its time
            raise
        return 0

    def leave(self, error: BaseException) -> None:
        """Tell the others with which exit code this node will end."""
        if isinstance(error, Stopped):
            self.tell(code=error.exit_code)
        else:
            self.tell(code=exit_code(error) if isinstance(error, Exception) else 130)


@contextmanager
def gather(node: Node) -> Iterator[Team]:
    """Connect this node with the others; when it ends early, they are told with which exit code.

    Raises:
        Refusal: they do not all come within five minutes.
    """
    links = [] if node.count == 1 else _accept(node) if node.rank == 0 else [_reach(node)]
    team = Team(links)
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
            rank = _greeted(link, node.job)
            if rank is None:
                link.close()
            else:
                links[rank] = link
    return list(links.values())


def _greeted(link: Connection, job: str) -> int | None:
    """The rank that a node of this job says first; None for whoever else knocks at an open port."""
    try:
        theirs, rank = json.loads(link.recv_bytes(LONGEST))
    except (EOFError, OSError, ValueError):
        return None
    return int(rank) if theirs == job else None


def _reach(node: Node) -> Connection:
    """The connection to node 0, on another node."""
    deadline = time.monotonic() + GATHERING
    while True:
        try:
            link = _link(socket.create_connection((node.address, node.port), timeout=10))
        except OSError as error:  # it has not come so far
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
        if not hasattr(socket, name):
            continue  # macOS has other names, and defaults of hours
        peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(peer.detach())
