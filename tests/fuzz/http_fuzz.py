"""What an HTTP listener is fuzzed with: requests made from its own OpenAPI document, and bytes that are no request."""

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
schemathesis.serializer.alias("application/zip", "application/octet-stream")
_CHECKS = CHECKS.get_by_names(
    ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)
TIMEOUT_S = 300.0
_WORDS = (b"GET", b"POST", b"/", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b":", b"Host", b"Transfer-Encoding: chunked")
_LENGTHS = (b"Content-Length: 9", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"ffffffff\r\n")


def fuzz_documented(url: str, document: str, *, num_examples: int, leaves_out: str = "^$") -> int:
    """Ask for every operation of an OpenAPI document with good and bad input; return how many operations there are.

    An answer must be documented, have the documented form, be no 5xx and tell nothing of our code.
    """
    schema = schemathesis.openapi.from_url(f"{url}{document}", wait_for_schema=TIMEOUT_S)
    count = 0
    for found in schema.exclude(path_regex=leaves_out).get_all_operations():
        count += 1
        operation = found.ok()
        _fuzz_operation(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), num_examples)
        with suppress(Unsatisfiable):  # what takes no input has no bad input
            _fuzz_operation(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), num_examples)
    return count


def _fuzz_operation(cases: object, num_examples: int) -> None:
    @settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=cases)  # type: ignore[call-overload]
    def ask(case: Case) -> None:
        answer = case.call(timeout=TIMEOUT_S)
        assert "Traceback" not in answer.text
        case.validate_response(answer, checks=_CHECKS)

    ask()


def fuzz_raw(url: str, *, seed: int, count: int, more: Callable[[random.Random], bytes] = lambda _: b"") -> None:
    """Send bytes that are no request, or nearly one; whatever answers must not tell anything of our code."""
    chance = random.Random(seed)
    for _ in range(count):
        said = b"".join(_garbage(chance)) + more(chance)
        answer = exchange(url, said)
        assert b"Traceback" not in answer, said
        assert not answer.startswith(b"HTTP/1.1 5"), (said, answer)


def _garbage(chance: random.Random) -> Iterator[bytes]:
    for _ in range(chance.randrange(1, 12)):
        yield chance.choice([*_WORDS, *_LENGTHS, chance.randbytes(chance.randrange(40))])


def exchange(url: str, said: bytes) -> bytes:
    """Say something over a connection of its own, be silent, and return the answer; a reset is an answer too."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S) as connection:
        answer = b""
        with suppress(ConnectionError, BrokenPipeError):
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
        return answer
