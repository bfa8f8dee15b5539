"""Whether a server can be used, found in seconds: the libraries that talk to it try for minutes."""

import urllib.error
import urllib.request

PATIENCE = 5.0  # seconds


def connection_problem(url: str) -> str | None:
    """Why a server does not answer; None where it does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not to this question
    except OSError as error:
        return f"{url} does not answer ({getattr(error, 'reason', error)})"
    return None
