"""Connectivity checks."""

import urllib.error
import urllib.request


def connection_problem(url: str, seconds: float = 5) -> str | None:
    """Why a server does not answer, found in seconds: client libraries retry for minutes; None if it answers at all."""
    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not to this question
    except OSError as error:
        return f"{url} does not answer ({getattr(error, 'reason', error)})"
    return None
