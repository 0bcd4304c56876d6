"""Networks and all names below a domain, opened and closed by a person, in a whole mesh: what is outside answers, and a
workload at an address of the same network is judged as a workload."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graph.model import Port
from hedgerow.client import ClientError
from hedgerow.local.description import Program, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from tests.mesh.running import client, script, server, set_mode

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOMEBODY = "192.0.2.53"
PORT, DNS_PORT = 8080, 5300
#: Pods of a mesh have addresses in their order. The first three are in one network of four, the next two in one of two.
RESOLVER, PARTNER, SERVER, CALLER, OTHER_CALLER = (f"10.77.1.{number}" for number in range(1, 6))
AROUND, CALLERS = "10.77.1.0/30", "10.77.1.4/31"
ZONE = {
    "api.example.com": PARTNER,
    "deep.api.example.com": PARTNER,
    "example.com": PARTNER,
    "api.example.net": PARTNER,
    "inside.example.com": SERVER,
}
SIDECAR = {"dns": {"upstreams": [f"{RESOLVER}:{DNS_PORT}"]}}
CLIENT = "shop/client-0"


def workloads() -> list[WorkloadSpec]:
    return [
        outside("outside/resolver", script("resolver.py", DNS_PORT, json.dumps(ZONE))),
        outside("outside/partner", script("web_server.py", "partner", PORT), Port(PORT)),
        server("shop/server", script("web_server.py", "server", PORT), PORT, app_protocol="http"),
        client("outside/caller", meshed=False, listed=False),
        client("outside/other", meshed=False, listed=False),
        client("shop/client"),
    ]


def outside(name: str, argv: tuple[str, ...], *ports: Port) -> WorkloadSpec:
    """What is in nobody's books."""
    return client(name, program=Program(argv), ports=ports, meshed=False, listed=False)


async def called(mesh: LocalMesh, name: str) -> bool:
    """Whether the client is answered under a name."""
    done = await mesh.pod(CLIENT).exec(script("egress_client.py", SOMEBODY, name, PORT))
    assert done.code == 0, done.stderr
    address, said = done.stdout.strip().split(" ", 1)
    assert address == ZONE[name]
    assert said == "refused" or said.startswith(("partner", "server"))
    return said != "refused"


async def reached(mesh: LocalMesh, pod: str) -> bool:
    """Whether something outside, without a sidecar, is answered by the server."""
    done = await mesh.pod(pod).exec(script("reach.py", f"{SERVER}:{PORT}"))
    assert done.code == 0, done.stderr
    (said,) = json.loads(done.stdout).values()
    assert said in ("server", "refused")
    return said == "server"


async def override(mesh: LocalMesh, effect: str, source: str, destination: str, **more: Any) -> dict[str, Any]:
    asked = {"effect": effect, "from": source, "to": destination, "port": PORT, "expires_in": None}
    made = await mesh.api.post("/overrides", asked | {"owner": "tests", "reason": "a test"} | more)
    assert made["pushed"]
    return made


async def revoke(mesh: LocalMesh, made: dict[str, Any]) -> None:
    await mesh.api.delete(f"/overrides/{made['override']['id']}", {"owner": "tests", "reason": "done"})


async def until(mesh: LocalMesh, name: str, wanted: bool) -> None:
    async def so() -> bool:
        return await called(mesh, name) == wanted

    await mesh.wait_for(so, f"{name} to be {'answered' if wanted else 'refused'}", 90)


async def test_a_network_outside_is_opened_and_closed_and_a_workload_in_it_is_judged_as_one(mesh: LocalMesh) -> None:
    assert [mesh.pod(f"{name}-0").address for name in ("outside/resolver", "outside/partner", "shop/server")] == [
        RESOLVER, PARTNER, SERVER,
    ]  # fmt: skip
    await set_mode(mesh, "shop", "enforce", "permissive")
    assert not await called(mesh, "api.example.com")

    opened = await override(mesh, "allow", "shop/client", f"-/{AROUND}")
    assert AROUND in opened["note"]
    assert await called(mesh, "api.example.com")
    assert await called(mesh, "api.example.net"), "by its address, whatever its name"
    assert not await called(mesh, "inside.example.com"), "an address is no way to a workload"
    why = await mesh.api.get("/why", {"from": "shop/client", "to": f"-/{SERVER}", "port": PORT})
    assert (why["verdict"], why["outbound"]["reason"]) == ("deny", "no-rule")
    assert any("ask about shop/server" in sentence for sentence in why["explanation"])
    why = await mesh.api.get("/why", {"from": "shop/client", "to": f"-/{PARTNER}", "port": PORT})
    assert (why["verdict"], why["outbound"]["rule"]["id"]) == ("allow", opened["override"]["id"])

    closed = await override(mesh, "deny", "shop/client", f"-/{PARTNER}")
    assert not await called(mesh, "api.example.com"), "a deny goes above an allow"
    await revoke(mesh, closed)
    await until(mesh, "api.example.com", True)
    await revoke(mesh, opened)
    await until(mesh, "api.example.com", False)


async def test_a_network_that_is_open_for_a_while_is_closed_at_its_end(mesh: LocalMesh) -> None:
    assert not await called(mesh, "api.example.com")
    await override(mesh, "allow", "shop/client", f"-/{AROUND}", expires_in=30.0)
    assert await called(mesh, "api.example.com")
    await until(mesh, "api.example.com", False)
    overrides = (await mesh.api.get("/overrides"))["overrides"]
    assert "expired" in {each["state"] for each in overrides if each["to"] == f"-/{AROUND}"}


async def test_all_names_below_a_domain_are_opened_and_the_domain_itself_is_not(mesh: LocalMesh) -> None:
    opened = await override(mesh, "allow", "shop/client", "-/*.Example.COM.")
    assert opened["override"]["to"] == "-/*.example.com"
    assert await called(mesh, "api.example.com")
    assert await called(mesh, "deep.api.example.com")
    assert not await called(mesh, "example.com")
    assert not await called(mesh, "api.example.net")
    assert not await called(mesh, "inside.example.com"), "whoever answers for a name does not choose a workload"
    closed = await override(mesh, "deny", "shop/client", "-/*.api.example.com")
    assert not await called(mesh, "deep.api.example.com")
    assert await called(mesh, "api.example.com")
    await revoke(mesh, closed)
    await revoke(mesh, opened)
    await until(mesh, "api.example.com", False)


async def test_who_comes_from_a_network_outside_is_let_in_and_put_out_again(mesh: LocalMesh) -> None:
    assert [mesh.pod(f"outside/{name}-0").address for name in ("caller", "other")] == [CALLER, OTHER_CALLER]
    assert not await reached(mesh, "outside/caller-0")
    opened = await override(mesh, "allow", f"-/{CALLERS}", "shop/server")
    assert await reached(mesh, "outside/caller-0")
    assert await reached(mesh, "outside/other-0")
    closed = await override(mesh, "deny", f"-/{OTHER_CALLER}", "shop/server")
    assert not await reached(mesh, "outside/other-0")
    assert await reached(mesh, "outside/caller-0")
    await revoke(mesh, closed)
    await revoke(mesh, opened)

    async def out() -> bool:
        return not await reached(mesh, "outside/caller-0")

    await mesh.wait_for(out, "the caller to be refused", 60)


@pytest.mark.parametrize(
    ("source", "destination", "word"),
    [
        ("-/10.77.1.0/24", "shop/server", "clusterNetworks"),
        ("-/*.example.com", "shop/server", "nobody is called from one"),
        ("shop/client", "-/*.com", "*.example.com"),
        ("shop/client", "-/*", "names everybody"),
        ("shop/client", "-/*.co.uk", "anybody has names"),
        ("shop/client", "-/10.77.1.1/30", "10.77.1.0/30"),
        ("shop/client", f"-/{SERVER}", "shop/server"),
    ],
)
async def test_what_would_open_more_than_was_meant_is_refused(
    mesh: LocalMesh, source: str, destination: str, word: str
) -> None:
    with pytest.raises(ClientError) as caught:
        await override(mesh, "allow", source, destination)
    assert word in f"{caught.value.message} {caught.value.remedy}"
