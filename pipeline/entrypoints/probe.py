"""The health check of an image: `python -m pipeline.entrypoints.probe`, at the port that the process was told.

It ends with 0 if the process in the same container goes on (`/livez`), else with 1 and what it said.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

SECONDS = 5


def main() -> int:
    """Ask once; the standard library alone, since this starts every few seconds."""
    address = f"127.0.0.1:{os.environ.get('CORRIGENDA_HEALTH_PORT', '0')}"
    path = sys.argv[1] if len(sys.argv) > 1 else "/livez"
    try:
        urllib.request.urlopen(f"http://{address}{path}", timeout=SECONDS).close()
    except urllib.error.HTTPError as error:
        sys.stderr.write(error.read().decode(errors="replace"))
        return 1
    except OSError as error:
        sys.stderr.write(f"nothing answers at {address}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
