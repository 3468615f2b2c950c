"""A pod's program that asks for a token once a second, without retries, and prints what became of each request.

One line for each: when it ended, on the machine's monotonic clock, and a status, or `refused`, `closed` or `silent`.
Every second time it asks for a token that nobody has asked for before. Ends when it is killed.
"""

import http.client
import time
from itertools import count

ADDRESS = "169.254.169.254"
PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fresource-{}.example%2F"
INTERVAL_S = 1.0
ANSWER_S = 60


def main() -> None:
    """Ask for ever."""
    for number in count():
        began_s = time.monotonic()
        outcome = _ask(PATH.format(number if number % 2 else 0))
        print(time.monotonic(), outcome, flush=True)
        time.sleep(max(0.0, began_s + INTERVAL_S - time.monotonic()))


def _ask(path: str) -> int | str:
    connection = http.client.HTTPConnection(ADDRESS, timeout=ANSWER_S)
    try:
        connection.request("GET", path, headers={"Metadata": "true"})
        return connection.getresponse().status
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silent"
    except (http.client.HTTPException, OSError):
        return "closed"
    finally:
        connection.close()


if __name__ == "__main__":
    main()
