"""The page in a real browser: what it shows, that it stays live, and that it gives nothing away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from graph.model import Direction, Verdict, WorkloadRef
from tests.controller.mesh import CART, FRONT, INVENTORY, LEGACY, flow
from tests.hedgerow.served import Member, Served, asked, learned, populate, served
from tests.ui.browser import CORE, PAINTED, STATIC, Tab, built_page

CALL = "shop/front->shop/cart:8080/TCP"
CALLED = "shop/front → shop/cart:8080"
REFUSED = "shop/front->data/redis:6379/TCP"
OUTSIDE = "-/192.0.2.7->shop/front:8080/TCP"


def rgb(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.removeprefix("rgb(").removesuffix(")").split(",")[:3])


def person(controller: Served, effect: str = "deny", **changes: object) -> str:
    """Make an override on the call and return its id."""
    body = {"effect": effect, "from": "shop/front", "to": "shop/cart", "port": 8080, "expires_in": 600, "wait": 0}
    body |= {"owner": "anna", "reason": "a test", **changes}
    return str(controller.call("POST", "/overrides", body)["override"]["id"])


def revoke(controller: Served, override: str) -> None:
    controller.call("DELETE", f"/overrides/{override}?owner=anna&reason=done&wait=0")


def test_it_shows_the_graph_and_keeps_the_token_to_itself(tab: Tab, controller: Served) -> None:
    tab.open(controller.url, controller.token)
    tab.wait_live(4)
    # the token: out of the address bar and the history, in a header alone, and kept for a reload
    assert tab.page.url == f"{controller.url}/"
    assert controller.token not in tab.page.evaluate(
        "JSON.stringify([location.href, history.state, document.referrer])"
    )
    assert not any(controller.token in request for request in tab.requests)
    assert f"Bearer {controller.token}" in tab.authorizations
    tab.page.reload()
    tab.wait_live(4)
    assert not any(controller.token in request for request in tab.requests)
    assert {request.partition(" ")[0].startswith(controller.url) for request in tab.requests} == {True}

    # the drawing and the list say the same as the API
    graph = controller.get("/graph")
    assert sorted(tab.core("nodes().map(node => node.id())")) == sorted(f"n {node['id']}" for node in graph["nodes"])
    verdicts = {f"e {edge['id']}": edge["verdict"] for edge in graph["edges"]}
    assert dict(tab.core("edges().map(edge => [edge.id(), edge.data('verdict')])")) == verdicts
    assert set(verdicts.values()) == {"would-deny", "deny"}
    for edge in graph["edges"]:
        item = tab.item(edge["id"])
        assert item.get_attribute("class") == f"edge {edge['verdict']}"
        assert edge["from"].removeprefix("-/") in item.inner_text()
    assert tab.page.evaluate(PAINTED)
    assert "4 connections, 3 without a rule, 1 refused" in tab.page.inner_text("#totals")
    tab.check_quiet()


def test_colours_follow_the_verdict_in_the_drawing_and_in_the_list(live: Tab) -> None:
    def colours(edge: str) -> tuple[str, str]:
        drawn = live.core(f"$id('e {edge}').style('line-color')")
        listed = live.item(edge).evaluate("item => getComputedStyle(item).borderLeftColor")
        return drawn.replace(" ", ""), listed.replace(" ", "")

    for edge in (CALL, REFUSED, OUTSIDE):
        drawn, listed = colours(edge)
        assert drawn == listed
    red, green, _ = rgb(colours(REFUSED)[0])
    assert red > 2 * green
    assert colours(CALL)[0] != colours(REFUSED)[0]
    assert live.core(f"$id('e {OUTSIDE}').style('line-style')") == "dashed"
    assert live.core(f"$id('e {CALL}').style('line-style')") == "solid"


def test_what_lies_outside_is_readable(live: Tab) -> None:
    assert live.item(OUTSIDE).inner_text().startswith("192.0.2.7 → shop/front:8080")
    assert live.core("$id('n -/192.0.2.7').data('label')") == "192.0.2.7\noutside"
    live.choose(OUTSIDE, "192.0.2.7 → shop/front:8080")
    assert "192.0.2.7 → shop/front:8080" in live.details
    assert "-/" not in live.details


def test_an_edge_in_the_list_shows_counters_identities_and_rule(live: Tab, controller: Served) -> None:
    live.choose(CALL, CALLED)
    edge = controller.edge(CALL)
    assert live.item(CALL).get_attribute("aria-pressed") == "true"
    assert live.row("Connections") == str(edge["connections"])
    assert live.row("Mutual TLS") == "100 %"
    assert live.row("Learned") == "active"
    assert live.row("Source") == "spiffe://hedgerow.test/ns/shop/sa/front/wl/front"
    assert live.row("Destination") == "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart"
    assert live.row("Rule") == edge["rule"]["id"]
    assert live.row("Origin") == "learned"
    assert "ago" in live.row("First seen") or live.row("First seen") == "now"
    for line in edge["evidence"]:
        assert line in live.details
    live.choose(REFUSED, "shop/front → data/redis:6379")
    assert "refused" in live.details
    assert live.row("Refused") == "2"
    assert "No rule covers this connection." in live.details
    live.page.keyboard.press("Escape")
    expect(live.page.locator("#details")).to_contain_text("Choose a connection")
    live.check_quiet()


def operations(tab: Tab) -> dict[str, list[str]]:
    rows = tab.page.locator("#details table.operations tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    return {name: figures for name, *figures in cells}


def test_the_panel_of_an_edge_lists_its_operations(live: Tab, controller: Served) -> None:
    live.choose(CALL, CALLED)
    shown = operations(live)
    assert list(shown) == ["DELETE /cart/{id}", "GET /cart/{id}", "PUT /cart"]
    assert shown["DELETE /cart/{id}"][:2] == ["0", "2"]
    assert shown["GET /cart/{id}"][:2] == ["7, 7 without a rule", "0"]
    titles = live.page.locator("#details table.operations th").all_inner_texts()
    assert titles == ["Operation", "Allowed", "Refused", "Last seen"]
    refused, zero = (
        live.page.locator(f"#details tr:has-text('{name}') td:nth-child(3)").evaluate("c => getComputedStyle(c).color")
        for name in ("DELETE", "GET")
    )
    assert refused != zero, "a refusal stands out"
    live.choose(REFUSED, "shop/front → data/redis:6379")
    assert operations(live) == {}
    assert "Operations" not in live.details
    live.check_quiet()


def test_an_operation_that_is_asked_appears_without_a_reload(live: Tab, controller: Served) -> None:
    live.choose(CALL, CALLED)
    hostile = "GET /<img/src=x/onerror=window.pwned=1>"
    cart = controller.join("shop/cart", "cart-0")
    try:
        cart.report(asked("PATCH /cart/{id}", 4, pending=Verdict.ALLOW, reason="allow-rule"), asked(hostile, 1))
        expect(live.page.locator("#details table.operations tbody")).to_contain_text("PATCH /cart/{id}")
        assert operations(live)["PATCH /cart/{id}"][:2] == ["4", "0"]
        assert hostile in operations(live)
        assert live.page.locator("#details img").count() == 0
        assert live.page.evaluate("window.pwned") is None
        cart.report(asked("PATCH /cart/{id}", 5, pending=Verdict.ALLOW, reason="allow-rule"))
        row = live.page.locator("#details tr:has-text('PATCH')")
        expect(row.locator("td:nth-child(2)")).to_have_text("9")
        live.check_quiet()
    finally:
        cart.close()


def test_a_rule_about_operations_says_so(live: Tab, controller: Served) -> None:
    override = person(controller, "allow", to="data/redis", port=6379, operations=["GET /{id}", "PUT /{id}"])
    try:
        live.choose(REFUSED, "shop/front → data/redis:6379")
        expect(live.page.locator("#details")).to_contain_text("override")
        assert live.row("Only") == "GET /{id}\nPUT /{id}"
    finally:
        revoke(controller, override)


def test_a_host_outside_is_shown_by_its_name(live: Tab, controller: Served, front: Member) -> None:
    host = WorkloadRef.external_host("api.example.com")
    edge = "shop/front->-/api.example.com:443/TCP"
    front.report(flow(FRONT, host, 443, direction=Direction.OUTBOUND, verified=False, destination_identity=""))
    expect(live.item(edge)).to_contain_text("shop/front → api.example.com:443")
    live.choose(edge, "shop/front → api.example.com:443")
    assert live.core("$id('n -/api.example.com').data('label')") == "api.example.com\noutside"
    live.click_drawing("$id('n -/api.example.com').renderedPosition()")
    expect(live.page.locator("#details h2")).to_have_text("api.example.com")
    assert live.row("Kind") == "a name outside the inventory"
    live.check_quiet()


def test_an_edge_and_a_node_are_chosen_in_the_drawing(live: Tab) -> None:
    live.click_drawing(f"$id('e {CALL}').renderedMidpoint()")
    expect(live.page.locator("#details h2")).to_have_text(CALLED)
    assert live.core("elements(':selected').map(element => element.id())") == [f"e {CALL}"]
    assert live.core(f"$id('e {REFUSED}').hasClass('faded')")
    live.click_drawing("$id('n shop/cart').renderedPosition()")
    expect(live.page.locator("#details h2")).to_have_text("shop/cart")
    assert live.row("Called by") == "shop/front"
    assert live.row("Calls") == "data/redis:6379"
    assert live.row("Instances") == "2"
    assert live.row("Identity") == "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart"
    live.click_drawing("extent() && ({x: 4, y: 300})")  # nothing is there
    expect(live.page.locator("#details")).to_contain_text("Choose a connection")
    live.check_quiet()


def test_a_new_connection_appears_and_a_verdict_changes_without_a_reload(
    live: Tab, controller: Served, front: Member
) -> None:
    live.page.evaluate("window.unreloaded = true")
    new = "shop/front->data/legacy:25/TCP"
    assert live.item(new).count() == 0
    front.report(flow(FRONT, LEGACY, 25, direction=Direction.OUTBOUND, verified=False, destination_identity=""))
    expect(live.item(new)).to_have_class("edge would-deny")
    assert live.core(f"$id('e {new}').length") == 1
    live.choose(CALL, CALLED)
    override = person(controller)
    expect(live.page.locator("#details")).to_contain_text("override")
    assert live.row("Effect") == "deny"
    assert live.row("Expires").startswith("in ")
    front.report(
        learned(direction=Direction.OUTBOUND, verdict=Verdict.DENY, pending=Verdict.DENY, reason="deny-override")
    )
    expect(live.item(CALL)).to_have_class("edge deny")
    assert live.core(f"$id('e {CALL}').data('verdict')") == "deny"
    expect(live.page.locator("#details .verdict")).to_have_text("refused")
    revoke(controller, override)
    expect(live.page.locator("#details")).not_to_contain_text("override")
    front.report(learned(direction=Direction.OUTBOUND, pending=Verdict.ALLOW, reason="allow-rule"))
    expect(live.item(CALL)).not_to_have_class("edge deny")
    assert live.page.evaluate("window.unreloaded") is True
    live.check_quiet()


def test_what_somebody_marks_to_copy_is_not_taken_away_by_the_next_figures(live: Tab, front: Member) -> None:
    live.choose(CALL, CALLED)
    before = live.row("Sent")
    live.page.locator("#details dt:text-is('Source') + dd").select_text()
    front.report(learned(direction=Direction.OUTBOUND, bytes_sent=123456789))
    live.page.wait_for_function(
        "before => [...document.querySelectorAll('#details dt')].some("
        "dt => dt.textContent === 'Sent' && dt.nextElementSibling.textContent !== before)",
        arg=before,
    )
    assert live.page.evaluate("getSelection().toString()").strip() == "spiffe://hedgerow.test/ns/shop/sa/front/wl/front"


def test_words_of_others_are_text(live: Tab, controller: Served) -> None:
    hostile = '<img src=x onerror="window.pwned=1"><b>anna</b>'
    live.choose(CALL, CALLED)
    override = person(controller, owner=hostile, reason=f"{hostile} & <script>window.pwned=1</script>")
    try:
        expect(live.page.locator("#details")).to_contain_text(hostile)
        assert live.row("Owner") == hostile
        assert "<script>" in live.row("Reason")
        assert live.page.locator("#details img, #details b, #details script").count() == 0
        assert live.page.evaluate("window.pwned") is None
        live.check_quiet()
    finally:
        revoke(controller, override)


def test_the_list_is_filtered_and_used_by_keyboard(live: Tab) -> None:
    everything = live.page.locator("#edges button").count()
    live.page.fill("#search", "refused redis")
    expect(live.page.locator("#edges button")).to_have_count(1)
    live.page.press("#search", "Tab")
    live.page.keyboard.press("Enter")
    expect(live.page.locator("#details h2")).to_have_text("shop/front → data/redis:6379")
    live.page.fill("#search", "no such thing")
    expect(live.page.locator("#edges button")).to_have_count(0)
    live.page.fill("#search", "")
    expect(live.page.locator("#edges button")).to_have_count(everything)


def test_moved_workloads_stay_where_they_were_put_until_they_are_arranged(
    live: Tab, controller: Served, front: Member
) -> None:
    box = live.page.locator("#graph").bounding_box()
    assert box is not None
    place = live.core("$id('n shop/cart').renderedPosition()")
    live.page.mouse.move(box["x"] + place["x"], box["y"] + place["y"])
    live.page.mouse.down()
    live.page.mouse.move(box["x"] + place["x"] + 40, box["y"] + place["y"] + 60, steps=5)
    live.page.mouse.up()
    moved = live.core("$id('n shop/cart').position()")
    front.report(flow(FRONT, CART, 9090, direction=Direction.OUTBOUND))
    expect(live.item("shop/front->shop/cart:9090/TCP")).to_have_count(1)
    live.wait(f"{CORE}.$id('e shop/front->shop/cart:9090/TCP').length")
    assert live.core("$id('n shop/cart').position()") == moved
    live.page.click("#arrange")
    assert live.core("$id('n shop/cart').position()") != moved


def test_the_dark_scheme(live: Tab) -> None:
    def lightness(text: str) -> float:
        return sum(rgb(text.replace(" ", ""))) / 3

    def seen() -> tuple[float, float, float]:
        return (
            lightness(live.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")),
            lightness(live.core("$id('n shop/cart').style('background-color')")),
            lightness(live.core("$id('n shop/cart').style('color')")),
        )

    page, node, ink = seen()
    assert page > 200
    assert node > 200
    assert ink < 80
    live.page.emulate_media(color_scheme="dark")
    live.wait(f"!{CORE}.$id('n shop/cart').style('background-color').includes('255')")
    page, node, ink = seen()
    assert page < 60
    assert node < 60
    assert ink > 180
    assert live.page.evaluate(PAINTED)
    live.check_quiet()


def test_a_narrow_window(browser: Browser, controller: Served) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    try:
        tab = Tab(context.new_page())
        tab.open(controller.url, controller.token)
        tab.wait_live(4)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        tab.item(CALL).scroll_into_view_if_needed()
        tab.choose(CALL, CALLED)
        assert tab.row("Source").startswith("spiffe://")
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
        canvas = tab.page.locator("#graph").bounding_box()
        assert canvas is not None
        assert canvas["width"] == 390
        assert canvas["height"] > 300
        drawn = tab.core("elements().renderedBoundingBox()")
        assert drawn["x1"] >= 0
        assert drawn["x2"] <= 390
        tab.check_quiet()
    finally:
        context.close()


def test_a_wrong_token_says_so_and_the_right_one_in_the_same_tab_works(tab: Tab, controller: Served) -> None:
    tab.open(controller.url, "a-token-of-somebody-else")
    expect(tab.page.locator("#link")).to_have_attribute("data-state", "refused")
    assert "no access" in tab.page.inner_text("#link")
    assert "#token=" in tab.page.inner_text("#link")
    assert tab.page.locator("#edges button").count() == 0
    assert "somebody" not in tab.page.url
    assert all("401" in complaint for complaint in tab.complaints)  # the browser's own words
    tab.page.evaluate(f"location.hash = 'token={controller.token}'")
    tab.wait_live(4)
    assert controller.token not in tab.page.url


def test_without_a_token_it_says_so(tab: Tab, controller: Served) -> None:
    tab.open(controller.url)
    expect(tab.page.locator("#link")).to_have_attribute("data-state", "refused")


def test_it_comes_back_after_the_controller_was_away(tab: Tab, tmp_path: Path) -> None:
    built_page()
    with served(tmp_path) as controller:
        populate(controller)
        tab.open(controller.url, controller.token)
        tab.wait_live(4)
        tab.check_quiet()
        tab.choose(CALL, CALLED)
        controller.stop()
        expect(tab.page.locator("#link")).to_have_attribute("data-state", "lost", timeout=15_000)
        assert "goes on with the last policy" in tab.page.inner_text("#link")
        assert tab.page.locator("#edges button").count() == 4  # what was known stays to be looked at
        controller.start()
        expect(tab.page.locator("#link")).to_have_attribute("data-state", "live", timeout=30_000)
        front = controller.join("shop/front", "front-0")
        front.report(flow(FRONT, CART, 9999, direction=Direction.OUTBOUND))
        expect(tab.item("shop/front->shop/cart:9999/TCP")).to_have_count(1)
        expect(tab.page.locator("#details h2")).to_have_text(CALLED)
        assert tab.page.evaluate("window.violations") == []


def test_a_workload_that_leaves_the_inventory_leaves_the_drawing(tab: Tab, tmp_path: Path) -> None:
    built_page()
    with served(tmp_path) as controller:
        tab.open(controller.url, controller.token)
        tab.page.wait_for_selector("#link[data-state=live]")
        tab.wait(f"{CORE}.nodes().length === 4")
        lines = [line for line in INVENTORY.splitlines() if "legacy" not in line]
        (tmp_path / "inventory.yaml").write_text("\n".join(lines))
        tab.wait(f"{CORE}.nodes().length === 3")
        tab.check_quiet()


def test_every_bundled_package_is_listed_with_its_licence(controller: Served) -> None:
    listed = (built_page() / "licenses.md").read_text()
    wanted = json.loads((Path(__file__).parents[2] / "ui" / "package.json").read_text())["dependencies"]
    assert wanted
    for package, version in wanted.items():
        assert f"## {package} - {version} (MIT)" in listed
    assert listed.count("WITHOUT WARRANTY OF ANY KIND") >= len(wanted)
    assert sum(path.stat().st_size for path in STATIC.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("name", ["index.html", "licenses.md", "favicon.svg"])
def test_the_built_files_hold_nothing_of_the_machine_they_were_built_on(name: str) -> None:
    for path in (built_page() / name, *(built_page() / "assets").iterdir()):
        text = path.read_text()
        for folder in (Path(__file__).parents[2], Path.home()):
            assert f"{folder}/" not in text
