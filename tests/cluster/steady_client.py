"""A pod's program that asks for tokens again and again, without retries, and says what became of each request.

    steady_client NAME [--keep-alive]

Prints `served` after its first token, and at SIGTERM one JSON line: a list of [began_s, outcome], times on the
machine's monotonic clock, an outcome being a status, or `refused`, `closed` or `silent`. NAME goes along in the
query, where NMI ignores it, so that a request that never met NMI can be told. Ends by itself after two minutes.
"""

import argparse
import http.client
import json
import signal
import time

ADDRESS = "169.254.169.254"
PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F&asker="
INTERVAL_S = 0.05
ANSWER_S = 5
LIFE_S = 120


def main() -> None:
    """Ask until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--keep-alive", action="store_true")
    given = parser.parse_args()
    told_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: told_to_end.append(number))
    outcomes: list[tuple[float, int | str]] = []
    connection = http.client.HTTPConnection(ADDRESS, timeout=ANSWER_S)
    ends_s = time.monotonic() + LIFE_S
    while not told_to_end and time.monotonic() < ends_s:
        began_s = time.monotonic()
        outcome = _ask(connection, PATH + given.name, keep=given.keep_alive)
        if outcome == http.HTTPStatus.OK and http.HTTPStatus.OK not in (seen for _, seen in outcomes):
            print("served", flush=True)
        outcomes.append((began_s, outcome))
        time.sleep(INTERVAL_S)
    print(json.dumps(outcomes), flush=True)


def _ask(connection: http.client.HTTPConnection, path: str, *, keep: bool) -> int | str:
    try:
        connection.request("GET", path, headers={"Metadata": "true"} | ({} if keep else {"Connection": "close"}))
        answer = connection.getresponse()
        answer.read()
    except ConnectionRefusedError:
        outcome: int | str = "refused"
    except TimeoutError:
        outcome = "silent"
    except (http.client.HTTPException, OSError):
        outcome = "closed"
    else:
        return answer.status
    connection.close()
    return outcome


if __name__ == "__main__":
    main()
