"""``hedgerow demo``: choose how the mesh is kept apart, run the demo there, serve until Ctrl-C.

The command itself is the *front*: outside the sandbox, where the page's port is, and where the token's file
descriptor is that people name in HEDGEROW_TOKEN_FILE. It starts this module once more inside.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import os
import shutil
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from hedgerow.client import ClientError
from hedgerow.local import manifests
from hedgerow.local.demo import Demo, Surroundings
from hedgerow.local.errors import LocalMeshError
from hedgerow.local.host_sockets import SocketGiver, SocketTaker, listen_on_loopback
from hedgerow.local.leftovers import make_directory, remove_leftovers
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.progress import Progress
from hedgerow.local.sandbox import Confinement, probe, run_in_sandbox
from hedgerow.local.summary import show

PORT = 8088
_INSIDE = "--inside"
_IMPATIENT = 3
_INTERRUPTED = 130
#: What ends it in good order.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Handed:
    """What the front hands down. Descriptors are the same numbers on both sides.

    :param confinement: the kind of sandbox
    :param channel: the :class:`SocketTaker`'s end; -1 when this process is in the page's network itself
    :param token_file: a descriptor that people read the operator's token through
    """

    once: bool
    json: bool
    out: str
    confinement: str
    listener: int
    channel: int
    token_file: int
    front: int


def demo(once: bool, json: bool, out: Path | None, port: int, explicit: bool) -> int:
    """Run the demo.

    :param once: end after the summary instead of serving
    :param json: print the result as JSON, the last line of stdout
    :param out: the folder for NetworkPolicies and inventory
    :param port: of the page on 127.0.0.1; 0 takes a free one
    :param explicit: no namespaces and no capture, even where possible
    :returns: 0 when everything was as it should be, 1 when not, 2 when it could not be run, 130 after an interrupt
    """
    console = Console(stderr=True)
    try:
        return _front(once, json, out, port, explicit, console)
    except LocalMeshError as error:
        _complain(console, error.message, error.remedy)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; nothing was started.")
        return _INTERRUPTED


def _front(once: bool, json: bool, out: Path | None, port: int, explicit: bool, console: Console) -> int:
    remove_leftovers()
    if out is None and not once:  # for people to look into while it serves
        temporary = make_directory()
        try:
            return _front(once, json, temporary, port, explicit, console)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if out is not None:
        out = out.absolute()
        manifests.prepare(out)
    kind = Confinement.NONE
    if not explicit:
        permitted = probe()
        kind = permitted.confinement
        if kind is Confinement.NONE:
            console.print("No namespaces here, so nothing is captured (explicit mode):", style="yellow")
        elif kind is Confinement.USER:
            console.print("Without root's namespaces; one user namespace holds everything:", style="yellow")
        if permitted.why_not:
            console.print(permitted.why_not, style="dim", markup=False)
    with listen_on_loopback(port) as listener:
        _compile_packages()
        token_file = os.memfd_create("hedgerow-token")
        common = (once, json, str(out or ""), str(kind))
        if kind is Confinement.NONE:
            return _run(_Handed(*common, listener.detach(), -1, token_file, os.getpid()))
        # What comes before the program inside can act on it waits until it can: there the signals are let in again.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        giver = SocketGiver()
        handed = _Handed(*common, listener.fileno(), giver.theirs.fileno(), token_file, os.getpid())
        return run_in_sandbox(
            [sys.executable, "-P", "-m", "hedgerow.local.command", _INSIDE, _dump(handed)],
            kind=kind,
            pass_fds=[handed.listener, handed.channel, handed.token_file],
            beside=giver.start,
        )


def _compile_packages() -> None:
    """Let a dozen programs that start at once find byte code, instead of each compiling the same files."""
    root = Path(__file__).parents[2]
    for package in ("certs", "graph", "sidecar", "controller", "hedgerow"):
        compileall.compile_dir(root / package, quiet=2)  # where that is not permitted they do it themselves


def _dump(handed: _Handed) -> str:
    return json.dumps(asdict(handed))


def _run(handed: _Handed) -> int:
    """Run inside, wherever that is, until it is done or somebody interrupts."""
    console = Console(stderr=True)
    try:
        return asyncio.run(_until_signalled(handed, console))
    except KeyboardInterrupt:
        return _INTERRUPTED


async def _until_signalled(handed: _Handed, console: Console) -> int:
    """Turn the usual signals into one orderly cancellation; the third interrupt waits for nothing any more."""
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(_tell(handed, console))
    signals = 0

    def interrupted() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            work.cancel()
        elif signals >= _IMPATIENT:
            os._exit(_INTERRUPTED)

    for number in _ENDING:
        loop.add_signal_handler(number, interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    try:
        return await work
    except asyncio.CancelledError:
        console.print("Interrupted; everything is stopped and removed.")
        return _INTERRUPTED
    except (LocalMeshError, ClientError) as error:
        _complain(console, error.message, error.remedy)
        return 2


async def _tell(handed: _Handed, console: Console) -> int:
    connector = SocketTaker(handed.channel).connector if handed.channel >= 0 else None
    page = console if handed.json else Console()
    with socket.socket(fileno=handed.listener) as listener:
        out = Path(handed.out) if handed.out else None

        def started(mesh: LocalMesh) -> None:
            """People may watch it from the beginning."""
            if not handed.once:
                os.pwrite(handed.token_file, mesh.token.encode(), 0)
                console.print(f"The page:  {_page_address(mesh)}", markup=False, highlight=False, soft_wrap=True)

        given = Surroundings(out, listener, Confinement(handed.confinement), connector, started)
        demo = Demo(given, Progress(console))
        try:
            result = await demo.run()
            show(result, page)
            if not handed.once:
                _tour(page, demo, handed)
                await _until_cancelled()
        finally:
            with console.status("Stopping everything"):
                await asyncio.shield(demo.stop())
    if handed.json:
        print(json.dumps(result.document()), flush=True)
    return 0 if not result.failures() else 1


async def _until_cancelled() -> None:
    """Serve. An interrupt from here on is how the demo is meant to end."""
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()


def _page_address(mesh: LocalMesh) -> str:
    """The token stands behind the #, which browsers never send."""
    return f"{mesh.server}/#token={mesh.token}"


def _tour(console: Console, demo: Demo, handed: _Handed) -> None:
    """What to look at and what to try, with lines that can be copied."""
    server = demo.mesh.server
    lines = [
        "",
        f"The page:  {_page_address(demo.mesh)}",
        "  Every arrow is an edge that was learned. Click one for its counters, identities and rule.",
        "  The red ones are the attacks. The shop goes on being used.",
        "",
        "In another terminal:",
        f"  export HEDGEROW_SERVER={server} HEDGEROW_TOKEN_FILE=/proc/{handed.front}/fd/{handed.token_file}",
        "  hedgerow status",
        "  hedgerow graph",
        "  hedgerow why shop/recommendation data/database:5432",
        "  hedgerow flows --verdict deny",
        "  hedgerow deny shop/front shop/recommendation:50051 --for 30s --reason 'try it'   # and watch the arrow",
        "  hedgerow policy export",
    ]
    lines += ["", f"NetworkPolicies and inventory, as Kubernetes manifests, are in {handed.out}"]
    lines += ["", "Ctrl-C stops everything and leaves nothing behind."]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _complain(console: Console, message: str, remedy: str) -> None:
    console.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    if remedy:
        console.print(f"  {remedy}", markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """``python -m hedgerow.local``, and what the front starts inside the sandbox."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [_INSIDE]:
        return _run(_Handed(**json.loads(given[1])))
    parser = argparse.ArgumentParser(prog="python -m hedgerow.local", description="Run a whole mesh on this machine.")
    parser.add_argument("--once", action="store_true", help="end after the summary instead of serving until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on the last line")
    parser.add_argument("--out", type=Path, help="write NetworkPolicies and inventory into this folder")
    parser.add_argument("--port", type=int, default=PORT, help="port of the page on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--explicit", action="store_true", help="no namespaces and no capture, even where possible")
    options = parser.parse_args(given)
    return demo(options.once, options.json, options.out, options.port, options.explicit)


if __name__ == "__main__":
    sys.exit(main())
