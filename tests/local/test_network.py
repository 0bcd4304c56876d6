"""Pods in network namespaces: who reaches whom, as whom programs run, and what they cannot do."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from graph.model import WorkloadRef
from hedgerow.local import views
from hedgerow.local.description import PlacedPod, PlacedService, WorkloadSpec
from hedgerow.local.errors import CommandFailed, LocalMeshError
from hedgerow.local.network import NamespaceSite
from hedgerow.local.processes import Process, run
from hedgerow.local.sandbox import Confinement, confinement
from hedgerow.local.site import Role

in_roots_sandbox = pytest.mark.skipif(
    confinement() is not Confinement.ROOT, reason="needs the sandbox that the test session is started in as root"
)
SERVICE = PlacedService("shop", "web", 1, "10.78.0.1", WorkloadRef("shop", "web"), ((80, 8080),))


def placed(site: NamespaceSite, name: str, index: int, namespace: str = "shop") -> PlacedPod:
    return PlacedPod(f"{name}-0", WorkloadSpec(WorkloadRef(namespace, name)), index, site.pod_address(index))


@pytest.fixture
async def site() -> AsyncIterator[NamespaceSite]:
    made = NamespaceSite()
    await made.open()
    try:
        yield made
    finally:
        await made.close()


def connect(host: str, port: int) -> list[str]:
    script = (
        "import socket,sys\n"
        "try: print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).recv(5).decode())\n"
        "except OSError as e: print(e.strerror or e)"
    )
    return [sys.executable, "-c", script, host, str(port)]


async def serve(site: NamespaceSite, pod: PlacedPod, directory: Path) -> Process:
    """A server in ``pod`` that greets on port 8080, ready when this returns."""
    script = (
        "import socket\ns = socket.create_server(('0.0.0.0', 8080)); print('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(b'hello'); c.close()"
    )
    server = Process("server", directory / "server.log")
    await site.start(server, pod, Role.APPLICATION, [sys.executable, "-c", script])
    async with asyncio.timeout(20):
        while "up" not in server.tail():
            assert server.running, server.tail()
            await asyncio.sleep(0.02)
    return server


@in_roots_sandbox
async def test_pods_reach_each_other_by_address_and_services_only_by_capture(
    site: NamespaceSite, tmp_path: Path
) -> None:
    web, client = placed(site, "web", 1), placed(site, "client", 2)
    await site.add([web, client], [SERVICE])
    server = await serve(site, web, tmp_path)
    try:
        assert (await site.run(client, Role.APPLICATION, connect(web.address, 8080))).stdout == "hello\n"
        refused = await site.run(client, Role.APPLICATION, connect("web", 80))
        assert refused.stdout == "No route to host\n"  # at once, not after a timeout
        names = await site.run(client, Role.APPLICATION, ["getent", "hosts", "web.shop.svc.cluster.local"])
        assert names.stdout.split()[0] == "10.78.0.1"
    finally:
        await server.stop()


@in_roots_sandbox
async def test_names_of_another_namespace_need_the_namespace(site: NamespaceSite) -> None:
    stranger = placed(site, "stranger", 3, namespace="other")
    await site.add([stranger], [SERVICE])
    assert (await site.run(stranger, Role.APPLICATION, ["getent", "hosts", "web.shop"])).code == 0
    assert (await site.run(stranger, Role.APPLICATION, ["getent", "hosts", "web"])).code == 2


@in_roots_sandbox
async def test_there_is_no_way_out_and_no_second_address(site: NamespaceSite) -> None:
    pod = placed(site, "web", 1)
    await site.add([pod], [])
    assert (await site.run(pod, Role.APPLICATION, connect("192.0.2.1", 80))).stdout == "No route to host\n"
    addresses = json.loads((await site.run(pod, Role.APPLICATION, ["ip", "-j", "addr", "show", "eth0"])).stdout)
    assert [entry["local"] for entry in addresses[0]["addr_info"]] == [pod.address]  # no IPv6 to go around by


@in_roots_sandbox
async def test_an_application_has_no_privilege_and_sees_nothing_of_the_mesh(site: NamespaceSite) -> None:
    pod = placed(site, "web", 1)
    await site.add([pod], [])
    secret = site.root / "secret"
    site.private_directory(secret, Role.SIDECAR)
    (secret / "key").write_text("key")
    site.hand_over(secret / "key", Role.SIDECAR)
    status = (await site.run(pod, Role.APPLICATION, ["cat", "/proc/self/status"])).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert (await site.run(pod, Role.APPLICATION, ["ls", str(site.root)])).code != 0
    assert (await site.run(pod, Role.APPLICATION, ["nft", "list", "ruleset"])).code != 0
    assert (await site.run(pod, Role.SIDECAR, ["cat", str(secret / "key")])).stdout == "key"
    assert (await site.run(pod, Role.CONTROLLER, ["cat", str(secret / "key")])).code != 0


@in_roots_sandbox
@pytest.mark.parametrize("uid", [0, 1337, 1338])
async def test_an_application_is_not_started_as_a_user_of_the_mesh(site: NamespaceSite, uid: int) -> None:
    pod = placed(site, "web", 1)
    await site.add([pod], [])
    with pytest.raises(LocalMeshError, match="cannot run as user"):
        await site.run(pod, Role.APPLICATION, ["true"], uid=uid)


@in_roots_sandbox
async def test_a_pods_environment_is_its_own(site: NamespaceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_TOKEN", "secret")
    pod = placed(site, "web", 1)
    await site.add([pod], [])
    assert "secret" not in (await site.run(pod, Role.APPLICATION, ["env"])).stdout


@in_roots_sandbox
async def test_closing_leaves_no_namespace_link_or_file() -> None:
    async def left() -> tuple[str, str, str, list[str]]:
        return (
            (await run(["ip", "-br", "link"])).stdout,
            (await run(["ip", "netns", "list"])).stdout,
            (await run(["ip", "route"])).stdout,
            sorted(os.listdir("/run/hedgerow")),
        )

    before = await left()
    site = NamespaceSite()
    await site.open()
    pods = [placed(site, "a", 1), placed(site, "b", 2)]
    await site.add(pods, [SERVICE])
    await site.add_controller()
    assert await left() != before
    await site.remove(pods[0])
    await site.close()
    assert await left() == before


@in_roots_sandbox
async def test_a_second_mesh_beside_the_first_is_refused_and_does_it_no_harm(site: NamespaceSite) -> None:
    other = NamespaceSite()
    with pytest.raises(CommandFailed, match="File exists"):
        await other.open()
    await other.close()
    await site.add([placed(site, "web", 1)], [])


@pytest.mark.skipif(confinement() is not Confinement.NONE, reason="this session is in a sandbox")
def test_without_a_sandbox_it_is_refused() -> None:
    with pytest.raises(LocalMeshError, match="sandbox"):
        NamespaceSite()


@pytest.mark.parametrize(("index", "address"), [(1, "10.77.1.1"), (250, "10.77.1.250"), (251, "10.77.2.1")])
def test_addresses_of_pods(index: int, address: str) -> None:
    assert NamespaceSite.pod_address(NamespaceSite.__new__(NamespaceSite), index) == address


# --- a user namespace, where everything is one user

IN_A_USER_NAMESPACE = """
import asyncio, json, sys
from pathlib import Path
from graph.model import WorkloadRef
from hedgerow.local.description import PlacedPod, WorkloadSpec
from hedgerow.local.network import NamespaceSite
from hedgerow.local.processes import Process
from hedgerow.local.site import Role

ATTACK = '''
import json, socket, sys
found = {}
def attempt(name, action):
    try: action(); found[name] = "done"
    except OSError as error: found[name] = error.strerror
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1337))
for name, pid in zip(("sidecar", "controller"), sys.argv[1:]):
    attempt(name + " memory", lambda: open(f"/proc/{pid}/mem", "rb"))
    attempt(name + " files", lambda: open(f"/proc/{pid}/root/run/hedgerow/key"))
attempt("state", lambda: open("/run/hedgerow/key"))
print(json.dumps(found))
'''

async def main():
    site = NamespaceSite()
    await site.open()
    pod = PlacedPod("web-0", WorkloadSpec(WorkloadRef("shop", "web")), 1, site.pod_address(1))
    await site.add([pod], [])
    await site.add_controller()
    Path("/run/hedgerow/key").write_text("key")
    marker = "import socket; socket.socket().setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1337); print('marked')"
    marked = await site.run(pod, Role.SIDECAR, [sys.executable, "-c", marker])
    sidecar = Process("sidecar", Path("/run/hedgerow/sidecar.log"))
    controller = Process("controller", Path("/run/hedgerow/controller.log"))
    await site.start(sidecar, pod, Role.SIDECAR, ["sleep", "60"])
    await site.start(controller, None, Role.CONTROLLER, ["sleep", "60"])
    for process in (sidecar, controller):
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\\n":
            await asyncio.sleep(0.01)
    pids = [str(sidecar.pid), str(controller.pid)]
    done = await site.run(pod, Role.APPLICATION, [sys.executable, "-c", ATTACK, *pids])
    print(json.dumps({"marked": marked.stdout.strip(), "attack": json.loads(done.stdout)}))
    await sidecar.kill(); await controller.kill(); await site.close()

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_in_a_user_namespace_an_application_cannot_pose_as_its_sidecar() -> None:
    front = (
        "import sys; from hedgerow.local.sandbox import Confinement, run_in_sandbox\n"
        "sys.exit(run_in_sandbox([sys.executable, '-c', sys.argv[1]], kind=Confinement.USER))"
    )
    become = 'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    script = f"{views.infrastructure_script(other_users=True)}\n{become}"
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script, "sh"),
            *(sys.executable, "-c", front, IN_A_USER_NAMESPACE),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["marked"] == "marked"
    assert report["attack"] == {
        "mark": "Operation not permitted",
        "sidecar memory": "Permission denied",
        "sidecar files": "Permission denied",
        "controller memory": "Permission denied",
        "controller files": "Permission denied",
        "state": "No such file or directory",
    }
