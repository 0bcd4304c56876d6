"""How the installed command ends when something is wrong: its words, its exit code, and never a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.hedgerow.served import COMMAND, Ended, Served, asked, environment, from_outside, learned, served, until
from tests.hedgerow.zygote import Zygote

WRITTEN_WRONG, NO_CONTROLLER, NO_ACCESS, INTERRUPTED, NO_READER = 2, 3, 4, 130, 141


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        # a typo
        ("statsu", 2, ["No such command 'statsu'", "Did you mean 'status'"]),
        ("policy shwo", 2, ["No such command 'shwo'", "Did you mean 'show'"]),
        ("status --outptu json", 2, ["No such option: --outptu", "--output"]),
        ("status -o xml", 2, ["'xml' is not one of 'table', 'json', 'yaml'"]),
        ("flows --limit 0", 2, ["--limit", "greater than or equal to 1"]),
        # something is missing
        ("allow shop/front shop/cart:8080", 2, ["Missing option '--reason'"]),
        ("allow shop/front --reason x", 2, ["two ends are wanted", "--from shop/front --to shop/cart:8080"]),
        ("allow shop/front shop/cart:80 --to shop/cart:80 --reason x", 2, ["two ends are wanted"]),
        ("controller", 2, ["Missing option '--config'"]),
        # a value that is none, told before anything is sent
        (
            "allow front shop/cart:80 --reason x",
            2,
            ["from: 'front' names no namespace", "shop/cart, or name its namespace with -n"],
        ),
        ("allow Shop/front shop/cart:80 --reason x", 2, ["from: 'Shop' is not a namespace name"]),
        ("allow shop/front shop/cart --reason x", 2, ["to: 'shop/cart' names no port", "shop/cart:8080"]),
        ("allow shop/front shop/cart:99999 --reason x", 2, ["to: 99999 is not a port", "from 1 to 65535"]),
        ("why shop/front shop/cart:all", 2, ["to: 'shop/cart:all' names no port"]),
        ("allow shop/front shop/cart:80 --for 8 --reason x", 2, ["--for: '8' is not a duration", "90s, 30m, 8h or 7d"]),
        ("deny shop/front shop/cart:80 --for 0h --reason x", 2, ["--for: '0h' is not a duration"]),
        ("why shop/front shop/cart:80 --protocol tpc", 2, ["--protocol: 'tpc'", "TCP, UDP or SCTP"]),
        ("mode set shop enforc", 2, ["'enforc' is not one of", "'enforce'"]),
        ("overrides revoke ../../status --reason x", 2, ["id: '../../status' is no override's"]),
        *(
            (f"tap shop/cart --reason x --server http://127.0.0.1:1 --status {wrong}", 2, [f"--status: '{wrong}' is"])
            for wrong in ("9xx", "600", "099", "500-400", "5x", "4xx-5xx")
        ),
        # -n is the namespace everywhere
        ("tap shop/cart --reason x -n 5", 2, ["-n is the namespace, and shop/cart names one", "write --count 5"]),
        ("tap shop/cart --reason x -n data", 2, ["--namespace: data, but workload is shop/cart"]),
        ("mode set data/redis audit -n shop", 2, ["--namespace: shop, but workload is data/redis"]),
        ("join-token create shop/cart cart-0 -n data", 2, ["--namespace: data, but workload is shop/cart"]),
        ("policy show shop/cart -n data", 2, ["--namespace: data, but workload is shop/cart"]),
        ("graph --namespace shp/x", 2, ["--namespace: 'shp/x' is not a namespace name"]),
        ("status -n Shop", 2, ["--namespace: 'Shop' is not a namespace name"]),
        ("flows -n a/b", 2, ["--namespace: 'a/b' is not a namespace name"]),
        ("allow front cart:80 -n shp --reason x", 1, ["there is no workload shp/"]),
        # the controller says no
        ("allow shop/front shop/crt:80 --reason x", 1, ["to: there is no workload shop/crt", "shop/cart"]),
        ("why shop/frnt shop/cart:80", 1, ["from: shop/frnt is not in the inventory", "shop/front"]),
        ("policy show shop/crt", 1, ["shop/crt", "shop/cart"]),
        ("allow shop/front shop/front:80 --reason x", 1, ["to: both ends are shop/front", "two different workloads"]),
        ("allow shop/front shop/cart:80 --for 9999d --reason x", 1, ["expires_in"]),
        ("allow shop/front shop/cart:80 --reason ''", 1, ["reason"]),
        ("overrides revoke 0123456789abcdef --reason x", 1, ["there is no override", "hedgerow overrides"]),
        ("mode set shp audit", 1, ["namespace: no workload is in the namespace 'shp'", "shop"]),
        ("join-token create shop/crt cart-0", 1, ["workload", "shop/cart"]),
        ("join-token create shop/cart cart-9", 1, ["instance", "cart-9"]),
        ("join-token create shop/cart cart-0 --for 99d", 1, ["expires_in"]),
    ],
)
def test_a_mistake_is_named_with_what_to_do(
    controller: Served, command: Zygote, line: str, code: int, words: Sequence[str]
) -> None:
    before = controller.get("/status")["audit_head"]
    arguments = ["" if word == "''" else word for word in line.split()]
    ended = command(*arguments, env=controller.access)
    assert (ended.code, ended.out) == (code, "")
    for word in words:
        assert word in ended.err
    if ended.err.startswith("error: "):
        assert "\n  try: " in ended.err
    assert controller.get("/status")["audit_head"] == before  # nothing was changed


@pytest.mark.parametrize(
    ("operation", "code", "words"),
    [
        ("/cart", 2, ["does not begin with a method", "GET /cart/{id}"]),
        ("/cart*", 2, ["does not begin with a method", "GET /cart*"]),
        ("get /cart", 2, ["the method in capitals"]),
        ("GET /cart/42", 2, ["'42' looks like an identifier", "write {id}"]),
        # these are asked for; there is no controller to take them
        *((good, 3, ["no controller answers"]) for good in ("GET /cart/{id}", "GET /ca*", "*", "GET /{other}")),
    ],
)
def test_a_tap_that_could_show_nothing_is_not_begun(
    controller: Served, command: Zygote, operation: str, code: int, words: Sequence[str]
) -> None:
    nobody = ("--server", "http://127.0.0.1:1")
    ended = command("tap", "shop/cart", "--reason", "x", *nobody, "--operation", operation, env=controller.access)
    assert (ended.code, ended.out) == (code, "")
    assert all(word in ended.err for word in words), ended.err


@pytest.mark.parametrize(
    ("access", "code", "words"),
    [
        ({"HEDGEROW_TOKEN_FILE": ""}, NO_ACCESS, ["wants a token", "operator.token", "--token-file"]),
        ({"HEDGEROW_TOKEN_FILE": "/dev/null"}, NO_ACCESS, ["wants a token"]),
        ({"HEDGEROW_TOKEN": "a-wrong-token-of-somebody"}, NO_ACCESS, ["does not know this token", "operator.token"]),
        ({"HEDGEROW_TOKEN": "no token\nat all"}, NO_ACCESS, ["HEDGEROW_TOKEN holds no token"]),
        ({"HEDGEROW_TOKEN_FILE": "/nowhere/token"}, NO_ACCESS, ["/nowhere/token cannot be read: No such file"]),
        ({"HEDGEROW_TOKEN_FILE": "/bin/true"}, NO_ACCESS, ["/bin/true holds no token"]),
        ({"HEDGEROW_SERVER": "localhost:8080"}, WRITTEN_WRONG, ["'localhost:8080' is not an address", "http://"]),
        ({"HEDGEROW_SERVER": "http://[::1"}, WRITTEN_WRONG, ["is not an address"]),
        (
            {"HEDGEROW_SERVER": "http://127.0.0.1:1"},
            NO_CONTROLLER,
            [":1: Connection refused", "hedgerow demo", "port-forward"],
        ),
        ({"HEDGEROW_SERVER": "http://no.such.name.invalid"}, NO_CONTROLLER, ["no controller answers at"]),
    ],
)
def test_no_access_and_no_controller_are_told_apart(
    controller: Served, command: Zygote, access: dict[str, str], code: int, words: Sequence[str]
) -> None:
    ended = command("status", env={**controller.access, **access})
    assert (ended.code, ended.out) == (code, "")
    for word in words:
        assert word in ended.err
    assert ended.err.count("\n") == 2
    assert controller.token not in ended.err
    assert "somebody" not in ended.err


def test_a_viewer_may_look_and_change_nothing(controller: Served, command: Zygote) -> None:
    access = {**controller.access, "HEDGEROW_TOKEN_FILE": str(controller.state_dir / "viewer.token")}
    assert command("status", env=access).code == 0
    ended = command("mode", "set", "shop", "audit", env=access)
    assert (ended.code, "may look and change nothing" in ended.err) == (NO_ACCESS, True)
    assert "operator.token" in ended.err


def test_something_else_that_listens_there(command: Zygote) -> None:
    answers = {
        b"SSH-2.0-OpenSSH_9.6\r\n": "did not answer as a controller does",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/html\r\n\r\n<html>": "did not answer as",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n": "302 Found",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops": "500 Oops",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{"ver': "in the middle",
        b"": "Server disconnected",
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        said = b""

        def serve() -> None:
            while True:
                caller, _ = listening.accept()
                with caller, contextlib.suppress(ConnectionError):
                    if not caller.recv(65536):
                        return
                    caller.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        server = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            for said, words in answers.items():  # noqa: B007  # the thread says it
                ended = command("status", "--server", server)
                assert (ended.code, ended.out) == (NO_CONTROLLER, "")
                assert words in ended.err
                assert server in ended.err
        finally:
            socket.create_connection(listening.getsockname()).close()  # ends the thread
            thread.join(30)


@contextlib.contextmanager
def started(controller: Served, *arguments: str, **streams: int) -> Iterator[subprocess.Popen[str]]:
    """The installed command, while it runs."""
    process = subprocess.Popen(
        [str(COMMAND), *arguments],
        stdout=streams.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(controller.access),
        cwd="/",
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("form", ["table", "json"])
def test_flows_are_followed_until_ctrl_c(controller: Served, form: str) -> None:
    front = controller.join("shop/front", "front-0")
    with started(controller, "flows", "-f", "--workload", "-/192.0.2.7", "-o", form) as process:
        assert process.stdout is not None
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reading.start()

        def seen() -> bool:
            front.report(from_outside(), learned())  # the latter is not asked for
            return len(lines) >= 2

        until(seen, "two flows")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == INTERRUPTED
        reading.join(30)
        assert process.stderr is not None
        assert process.stderr.read() == ""
    word = '"source": "-/192.0.2.7"' if form == "json" else "192.0.2.7 → shop/front:8080  learning, no proof"
    assert all(word in line for line in lines), lines


def test_what_is_asked_is_followed_with_its_operation(controller: Served) -> None:
    cart = controller.join("shop/cart", "cart-0")
    with started(controller, "flows", "-f", "--workload", "shop/cart") as process:
        assert process.stdout is not None
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reading.start()
        until(lambda: cart.report(asked()) or any("GET /" in line for line in list(lines)), "a request")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == INTERRUPTED
        reading.join(30)
    (line, *_) = (line for line in lines if "GET /" in line)
    assert "shop/front → shop/cart:8080  GET /cart/{id}  learning, mtls, 7 requests, by cart-0" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_flows_end_with_a_word_when_the_controller_does(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path) as controller:
        front = controller.join("shop/front", "front-0")
        with started(controller, "flows", "--follow") as process:
            assert process.stdout is not None
            lines: list[str] = []
            reading = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
            reading.start()
            until(lambda: front.report(from_outside()) or lines, "a flow")
            controller.stop(number)
            assert process.wait(30) == NO_CONTROLLER
            reading.join(30)
            assert process.stderr is not None
            said = process.stderr.read()
            assert "Traceback" not in said
            assert said.startswith("error: ")
            assert "  try: " in said


@pytest.mark.parametrize("line", ["status", "graph -o svg", "flows --limit 3", "policy export", "flows -f"])
def test_a_reader_that_goes_away_is_no_error(controller: Served, line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    front = controller.join("shop/front", "front-0")
    with started(controller, *line.split(), stdout=writer) as process:
        os.close(writer)
        until(lambda: front.report(from_outside()) or process.poll() is not None, "its end")
        assert process.returncode == NO_READER
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
        assert [each for each in said if not each.startswith("wider than the sidecars: ")] == []


def test_head_sees_what_it_wants(controller: Served) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{COMMAND} graph | head -1; echo ${{PIPESTATUS[0]}} >&2"],
        capture_output=True, text=True, timeout=60, check=True, env=environment(controller.access), cwd="/",
    )  # fmt: skip
    ended = Ended(done)
    assert ended.out.startswith("CONNECTION ")
    assert ended.err in ("0\n", f"{NO_READER}\n")


def test_ctrl_c_in_the_first_moments_is_no_traceback(controller: Served) -> None:
    """Wherever it is then: importing, connecting to a controller that never answers, waiting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started(controller, "status", "--server", server) as process:
            caller, _ = silent.accept()
            with caller:
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == INTERRUPTED
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
