"""File locks between processes, also across machines.

flock(2) releases the lock when its process ends, so a kill leaves nothing to clean up; on Linux it works over NFS. Lock
files are never deleted: if others wait for a deleted file, two processes could hold the lock.
"""

import errno
import os
import socket
from pathlib import Path
from typing import TextIO

from foldwise.errors import Refusal

try:
    import fcntl
except ImportError:  # Windows: one job at a time only
    fcntl = None  # type: ignore[assignment]

# Errors of file systems without locks, such as Lustre mounted without `flock`. Runs work there as long as only one job
# trains a fold and no two jobs end in the same second.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def lock(path: Path, wait: bool = True) -> TextIO:
    """Lock `path`, creating it if needed, until the returned file is closed.

    Raises:
        Refusal: another process holds it and `wait` is False; the message is the holder, as "process 12 on host n1".
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
    if not wait:  # shown to others
        file.truncate(0)
        file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
        file.flush()
    return file
