"""Locks between processes, also of several machines: a file of which only one at a time is the holder.

flock(2): the lock ends with the process that holds it, so that nothing has to be cleaned up after a kill. Linux passes
it on over NFS. The files stay, since deleting one that others wait for would let two hold it.
"""

import errno
import os
import socket
from pathlib import Path
from typing import TextIO

from foldwise.errors import Refusal

try:
    import fcntl
except ImportError:  # Windows, which is for a single job here
    fcntl = None  # type: ignore[assignment]

# What a file system without locks says, as Lustre mounted without `flock`. A run there works as long as only one job
# trains a fold and jobs do not end in the same second.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(path: Path, wait: bool = True) -> TextIO:
    """Lock the file `path`, made if it is new, until the file that is returned is closed.

    Args:
        wait: for the holder to end.

    Raises:
        Refusal: somebody else holds it and `wait` is False; the message says who, as "process 12 on host n1".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        with file:
            file.seek(0)
            raise Refusal(file.read().strip() or "another process") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            file.close()
            raise
    if not wait:  # for the message of others
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
    return file
