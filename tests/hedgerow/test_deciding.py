"""The commands by which a person decides: what they change, what they say, and that the audit log knows who it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import yaml

from tests.hedgerow.served import Ended, Served, populate, served
from tests.hedgerow.served import asked as requests
from tests.hedgerow.zygote import Zygote

type Asked = Callable[..., Ended]


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One of our own: these tests change it."""
    with served(tmp_path_factory.mktemp("controller")) as running:
        populate(running)
        yield running


@pytest.fixture
def asked(controller: Served, command: Zygote) -> Asked:
    """Runs the command as a user named anna."""
    return partial(command, env={**controller.access, "USER": "anna", "LOGNAME": "anna"})


def active(controller: Served) -> list[dict[str, object]]:
    return [each for each in controller.get("/overrides")["overrides"] if each["state"] == "active"]


def test_an_override_is_made_listed_explained_and_revoked(controller: Served, asked: Asked) -> None:
    made = asked("deny", "shop/front", "shop/cart:8080", "--for", "8h", "--reason", "an incident")
    assert (made.code, made.err) == (0, "")
    (override,) = active(controller)
    assert made.out == (
        f"{override['id']}: deny shop/front → shop/cart:8080, ends in 7h; "
        "every connected sidecar that it concerns holds it\n"
    )
    assert (override["owner"], override["reason"]) == ("anna", "an incident")
    assert float(override["expires_at"]) - float(override["created_at"]) == pytest.approx(8 * 3600)

    listed = asked("overrides")
    for word in (str(override["id"]), "active", "deny", "shop/front → shop/cart:8080", "in 7h", "anna", "an incident"):
        assert word in listed.out
    why = asked("why", "shop/front", "shop/cart:8080").out
    assert why.startswith("deny")
    assert f"    hedgerow overrides revoke {override['id']} --reason …\n" in why  # on its own line, to be copied

    bare = str(override["id"]).removeprefix("override/")
    ended = asked("overrides", "revoke", bare, "--reason", "it is over", "--owner", "bert", "-o", "json")
    assert ended.json()["override"]["state"] == "revoked"
    assert active(controller) == []
    assert "revoked" in asked("overrides").out
    said = asked("audit", "--limit", "2").out
    assert "anna  override.create" in said
    assert "bert  override.revoke" in said
    assert "reason: it is over" in said
    again = asked("overrides", "revoke", bare, "--reason", "twice")
    assert again.code == 1
    assert "revoked" in again.err


def test_operations_are_allowed_shown_and_explained_one_by_one(controller: Served, asked: Asked) -> None:
    both = ("--operation", "GET /cart/{id}", "--operation", "HEAD /cart/{id}")
    made = asked("allow", "shop/front", "data/redis:6379", *both, "--for", "1h", "--reason", "a test")
    assert (made.code, made.err) == (0, "")
    (override,) = active(controller)
    assert override["operations"] == ["GET /cart/{id}", "HEAD /cart/{id}"]
    assert "shop/front → data/redis:6379, only GET /cart/{id}, HEAD /cart/{id}, ends in" in made.out
    for words in (("overrides",), ("policy", "show"), ("policy", "show", "data/redis")):
        assert "GET /cart/{id}, HEAD /cart/{id}" in asked(*words).out, words

    asked("mode", "set", "data/redis", "enforce", "--reason", "a test")
    whole = asked("why", "shop/front", "data/redis:6379").out
    assert whole.startswith("allow")
    assert "judges what is asked one by one" in whole
    assert asked("why", "shop/front", "data/redis:6379", "--operation", "HEAD /cart/{id}").out.startswith("allow")
    closed = asked("why", "shop/front", "data/redis:6379", "--operation", "PUT /cart/{id}").out
    assert closed.startswith("deny")
    assert "    hedgerow allow shop/front data/redis:6379 --operation 'PUT /cart/{id}' --for 1h --reason …\n" in closed
    asked("mode", "set", "data/redis", "learn", "--reason", "a test")
    asked("overrides", "revoke", str(override["id"]), "--reason", "done")


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("get /cart", "in capitals"),
        ("GET /cart/42", "{id}"),
        ("GET /cart/{cart}", "{id}"),
        ("GET cart", "begin with '/'"),
    ],
)
def test_an_operation_that_is_none_is_not_even_sent(asked: Asked, operation: str, said: str) -> None:
    for command in ("allow", "deny"):
        ended = asked(command, "shop/front", "shop/cart:8080", "--operation", operation, "--reason", "x")
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
    ended = asked("why", "shop/front", "shop/cart:8080", "--operation", operation)
    assert ended.code == 2


def test_operations_where_nobody_would_judge_them_are_refused(controller: Served, asked: Asked) -> None:
    for target, why in (
        ("api.example.com:443", "does not inspect api.example.com:443"),
        ("data/legacy:25", "no sidecar that could judge operations"),
    ):
        ended = asked("allow", "shop/front", target, "--operation", "GET /", "--reason", "x")
        assert (ended.code, ended.out) == (1, "")
        assert why in ended.err
    assert active(controller) == []


def test_a_host_outside_is_allowed_by_its_name(controller: Served, asked: Asked) -> None:
    made = asked("allow", "shop/cart", "API.example.com.:443", "--for", "30m", "--reason", "the bank")
    assert (made.code, made.err) == (0, "")
    assert "allow shop/cart → api.example.com:443, ends in" in made.out
    (override,) = active(controller)
    assert override["to"] == "-/api.example.com"
    assert "api.example.com" in asked("policy", "show", "shop/cart").out
    assert asked("why", "shop/cart", "api.example.com:443").out.startswith("allow")
    exported = asked("policy", "export")
    assert "does not know names" in exported.err
    assert "cidr: 0.0.0.0/0" in exported.out
    inside = asked("allow", "shop/front", "cart.shop.svc:80", "--reason", "x")
    assert (inside.code, "write shop/cart" in inside.err) == (1, True)
    source = asked("allow", "api.example.com", "shop/cart:8080", "--reason", "x")
    assert (source.code, "nobody is called from one" in source.err) == (1, True)
    asked("overrides", "revoke", str(override["id"]), "--reason", "done")


def test_a_network_and_the_names_below_a_domain_are_allowed_explained_and_exported(
    controller: Served, asked: Asked
) -> None:
    asked("mode", "set", "shop/cart", "enforce", "--direction", "outbound", "--reason", "a test")
    made = asked("allow", "shop/cart", "--to", "203.0.113.0/24:443", "--for", "30m", "--reason", "the bank")
    assert (made.code, made.err) == (0, "")
    assert "allow shop/cart → 203.0.113.0/24:443, ends in" in made.out
    assert "rules go by identity there" in made.out
    below = asked("allow", "--from", "shop/cart", "--to", "*.Example.com:8443", "--reason", "the bank")
    assert (below.code, "allow shop/cart → *.example.com:8443, has no end" in below.out) == (0, True)
    six = asked("deny", "shop/cart", "[2001:db8::/32]:all", "--reason", "a test")
    assert "deny shop/cart → 2001:db8::/32, every TCP port" in six.out
    network, names, closed = (each["id"] for each in active(controller))

    for target, verdict, rule in (
        ("203.0.113.9:443", "allow", network),
        ("203.0.114.9:443", "deny", ""),
        ("pay.example.com:8443", "allow", names),
        ("example.com:8443", "deny", ""),
        ("[2001:db8::7]:443", "deny", closed),
        ("10.0.0.3:443", "deny", ""),
    ):
        why = asked("why", "shop/cart", target, "-o", "json").json()
        assert (why["verdict"], (why["outbound"]["rule"] or {}).get("id", "")) == (verdict, rule), target
    shown = asked("policy", "show", "shop/cart").out
    assert "203.0.113.0/24" in shown
    assert "*.example.com" in shown
    exported = asked("policy", "export")
    assert "cidr: 203.0.113.0/24" in exported.out
    assert "hedgerow.dev/names: '*.example.com: a NetworkPolicy knows no names" in " ".join(exported.out.split())
    for each in (network, names, closed):
        asked("overrides", "revoke", str(each), "--reason", "done")
    asked("mode", "set", "shop/cart", "learn", "--reason", "a test")


def test_who_may_call_from_a_network_outside_is_said_in_the_same_words(controller: Served, asked: Asked) -> None:
    made = asked("allow", "--from", "198.51.100.0/24", "--to", "shop/cart:8080", "--reason", "customers")
    assert (made.code, made.err) == (0, "")
    assert "allow 198.51.100.0/24 → shop/cart:8080" in made.out
    (override,) = active(controller)
    why = asked("why", "198.51.100.7", "shop/cart:8080", "-o", "json").json()
    assert (why["verdict"], why["inbound"]["rule"]["id"]) == ("allow", override["id"])
    asked("overrides", "revoke", str(override["id"]), "--reason", "done")
    for ends, said in (
        (("10.0.0.0/8", "shop/cart:8080"), "clusterNetworks"),
        (("*.example.com", "shop/cart:8080"), "nobody is called from one"),
        (("shop/cart", "*.co.uk:443"), "anybody has names"),
    ):
        ended = asked("allow", *ends, "--reason", "x")
        assert (ended.code, ended.out, said in ended.err) == (1, "", True), ended.err
    for target, said in (
        ("*.com:443", "top-level domain"),
        ("*:443", "names everybody"),
        ("10.0.0.7/8:1", "10.0.0.0/8"),
    ):
        ended = asked("allow", "shop/cart", target, "--reason", "x")
        assert (ended.code, ended.out, said in ended.err) == (2, "", True), ended.err
    assert active(controller) == []


def test_what_was_asked_and_would_be_refused_is_drift(controller: Served, asked: Asked) -> None:
    member = controller.join("shop/cart", "cart-0")
    member.report(requests("POST /cart/{id}", 3))
    asked("deny", "shop/front", "shop/cart:8080", "--operation", "POST /cart/{id}", "--reason", "x")
    (override,) = active(controller)
    said = asked("drift").out
    assert "ASKED BUT NOT ALLOWED" in said
    assert "POST /cart/{id}" in said
    asked("overrides", "revoke", str(override["id"]), "--reason", "done")
    member.close()


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_every_decision_is_told_to_programs_as_the_api_tells_it(controller: Served, asked: Asked, form: str) -> None:
    def told(*arguments: str) -> dict[str, object]:
        ended = asked(*arguments, "--reason", "a test", "-o", form)
        assert (ended.code, ended.err) == (0, "")
        return ended.json() if form == "json" else yaml.safe_load(ended.out)

    made = told("allow", "-/198.51.100.9", "shop/front:8080", "--protocol", "udp")
    override = made["override"]
    assert made["pushed"] is True
    assert override in active(controller)
    assert (override["from"], override["protocol"], override["expires_at"]) == ("-/198.51.100.9", "UDP", None)
    assert told("overrides", "revoke", override["id"])["override"]["state"] == "revoked"

    every = told("deny", "shop/front", "data/redis:all")["override"]
    assert (every["port"], every["to"]) == (None, "data/redis")
    assert "shop/front → data/redis, every TCP port" in asked("overrides").out
    told("overrides", "revoke", every["id"])

    changed = told("mode", "set", "shop/cart", "audit", "--direction", "inbound", "--inbound-tls", "strict")
    assert changed["workloads"] == ["shop/cart"]
    assert changed["pushed"] is True
    cart = controller.get("/policy")["workloads"]["shop/cart"]
    assert (cart["inbound_mode"], cart["outbound_mode"], cart["inbound_tls"]) == ("audit", "learn", "strict")
    told("mode", "set", "shop/cart", "learn", "--inbound-tls", "permissive")


def test_a_mode_for_a_namespace_needs_no_words_and_leaves_some(controller: Served, asked: Asked) -> None:
    ended = asked("mode", "set", "shop", "audit")
    assert ended.out == "audit: shop/cart, shop/front; every connected sidecar that it concerns holds it\n"
    assert "reason: set to audit by hand" in asked("audit", "--limit", "1").out
    back = asked("mode", "set", "shop", "learn", "--reason", "back")
    assert back.code == 0


def test_a_sidecar_that_refuses_is_waited_for_and_then_named(controller: Served, asked: Asked) -> None:
    member = controller.join("data/redis", "redis-0")
    member.watch()
    member.nack = "rules[0]: effect: 'perhaps' is no \x1b[31meffect"
    ended = asked("mode", "set", "data/redis", "audit")
    assert ended.code == 0
    assert "not every sidecar has taken it yet, see `hedgerow status`" in ended.out
    said = asked("status").out
    assert "sidecars: 3 known, 1 in trouble" in said
    assert "rules[0]: effect: 'perhaps' is no " in said
    assert "\x1b" not in said
    member.nack = ""
    assert asked("mode", "set", "data/redis", "learn").out.endswith("holds it\n")
    assert "0 in trouble" in asked("status").out
    member.close()


def test_learned_edges_are_approved_by_name_or_all_of_them(controller: Served, asked: Asked) -> None:
    edge = "-/192.0.2.7->shop/front:8080/TCP"
    nothing = asked("policy", "approve", "--reason", "a test")
    assert (nothing.code, "edges: none named" in nothing.err) == (2, True)
    both = asked("policy", "approve", edge, "--all", "--reason", "a test")
    assert (both.code, "--all too" in both.err) == (2, True)
    cut = asked("policy", "approve", "shop/front-", "--reason", "a test")
    assert (cut.code, "in quotes" in cut.err) == (2, True)
    unknown = asked("policy", "approve", "shop/front->shop/cart:9/TCP", "--reason", "a test")
    assert (unknown.code, "edges" in unknown.err) == (1, True)

    ended = asked("policy", "approve", edge, "--reason", "it is the load balancer", "-o", "json")
    assert ended.json() == {"approved": [edge]}
    assert controller.edge(edge)["state"] == "active"
    assert asked("policy", "diff").out == "Nothing waits for approval.\n"
    assert "  anna  " in asked("audit", "--limit", "3").out
    assert asked("policy", "approve", "--all", "--reason", "x").out == "Nothing waited for approval.\n"


def test_a_join_token_alone_is_on_standard_output(controller: Served, asked: Asked) -> None:
    ended = asked("join-token", "create", "shop/cart", "cart-1", "--for", "90s")
    assert ended.code == 0
    assert ended.out.startswith("hedgerow-join.")
    assert ended.out.count("\n") == 1
    assert "shop/cart as cart-1, once, and it expires in 1m" in ended.err
    made = asked("join-token", "create", "shop/cart", "cart-1", "-o", "json").json()
    assert set(made) == {"token", "workload", "instance", "expires_at"}
    as_yaml = yaml.safe_load(asked("join-token", "create", "shop/cart", "cart-1", "-o", "yaml").out)
    assert as_yaml["instance"] == "cart-1"
    said = asked("audit", "--limit", "3").out
    assert said.count("anna  join-token.create") == 3
    assert made["token"].rpartition(".")[2] not in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mode", "set", "shop"), 2, "mode: none given"),
        (("mode", "set", "shop/cart", "--network-policy", "apply"), 2, "set it for shop"),
        (("mode", "set", "shop", "--network-policy", "apply"), 1, "not on a Kubernetes cluster"),
        (("policy", "diff", "--network-policies"), 1, "not on a Kubernetes cluster"),
        (("rollback", "network-policies", "shop", "--reason", "x", "--to", "yesterday"), 2, "previous, newest"),
        (("rollback", "network-policies", "shop", "--reason", "x"), 1, "not on a Kubernetes cluster"),
    ],
)
def test_what_is_for_a_cluster_is_refused_without_one(
    asked: Asked, words: tuple[str, ...], code: int, said: str
) -> None:
    ended = asked(*words)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err


def test_a_mode_may_be_left_as_it_is(controller: Served, asked: Asked) -> None:
    before = controller.get("/status")["workloads"]
    done = asked("mode", "set", "shop/cart", "--inbound-tls", "strict")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("inbound TLS strict: shop/cart; ")
    cart = {each["workload"]: each for each in before}["shop/cart"]
    after = {each["workload"]: each for each in controller.get("/status")["workloads"]}["shop/cart"]
    assert (after["inbound_tls"], after["inbound_mode"]) == ("strict", cart["inbound_mode"])
