"""Connectivity checks."""

import urllib.error
import urllib.request


def connection_problem(url: str) -> str | None:
    """Why a server does not answer within 5 seconds, or None; client libraries would retry for minutes."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return None  # any answer will do
    except OSError as error:
        return f"{url} does not answer ({getattr(error, 'reason', error)})"
    return None
