// The panel beside the graph: what is chosen, and the list of connections. Text is set as text, never as markup.

import type { Chosen } from "./drawing";
import type { GraphEdge, GraphNode, Operation, Rule, State, Verdict } from "./model";
import { edgeName, endName, isHost, operationName, spoken } from "./names";
import { ago, bytes, share } from "./text";

type Row = [name: string, value: string];

function element(tag: string, text = "", className = ""): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function rows(pairs: Row[]): HTMLElement {
  const list = element("dl");
  for (const [name, value] of pairs) {
    list.append(element("dt", name), element("dd", value || "–"));
  }
  return list;
}

/**
 * Makes `shown` what `wanted` is, and touches only the texts that differ where the shape is the same: figures move
 * several times a second, and what somebody has selected to copy must not be taken away.
 */
function follow(shown: Element, wanted: Element): void {
  const [old, fresh] = [[...shown.children], [...wanted.children]];
  if (shown.tagName !== wanted.tagName || old.length !== fresh.length) {
    shown.replaceWith(wanted);
    return;
  }
  if (shown.className !== wanted.className) shown.className = wanted.className;
  if (fresh.length === 0) {
    if (shown.textContent !== wanted.textContent) shown.textContent = wanted.textContent;
    return;
  }
  old.forEach((child, index) => follow(child, fresh[index] as Element));
}

const VERDICTS: Record<Verdict, string> = {
  allow: "allowed by a rule",
  "would-deny": "allowed for now: no rule yet",
  deny: "refused",
};

/** What the list says of a connection beside its colour; nothing of what is as it should be. */
const TAGS: Record<Verdict, string> = { allow: "", "would-deny": "no rule", deny: "refused" };

function expiry(at: number | null, now: number): string {
  if (at === null) return "never";
  const left = Math.ceil(at - now);
  if (left <= 0) return "expired";
  return left < 120 ? `in ${left} s` : left < 7200 ? `in ${Math.round(left / 60)} min` : `in ${Math.round(left / 3600)} h`;
}

function ruleRows(rule: Rule, now: number): HTMLElement {
  return rows([
    ["Rule", rule.id],
    ["Effect", rule.effect],
    ...(rule.operations.length > 0 ? [["Only", rule.operations.join("\n")] as Row] : []),
    ["Origin", rule.origin],
    ["Owner", rule.owner],
    ["Reason", rule.reason],
    ["Expires", expiry(rule.expires_at, now)],
  ]);
}

/** What was asked over a connection: each operation with how often it was allowed and refused. */
function operationTable(operations: Operation[], now: number): HTMLElement {
  const table = element("table", "", "operations");
  const [head, body] = [element("thead"), element("tbody")];
  const titles = element("tr");
  for (const title of ["Operation", "Allowed", "Refused", "Last seen"]) {
    const cell = element("th", title);
    cell.setAttribute("scope", "col");
    titles.append(cell);
  }
  head.append(titles);
  for (const asked of operations) {
    const row = element("tr");
    const allowed = asked.would_deny > 0 ? `${asked.requests}, ${asked.would_deny} without a rule` : String(asked.requests);
    row.append(
      element("td", operationName(asked.operation)),
      element("td", allowed, asked.would_deny > 0 ? "would-deny" : ""),
      element("td", String(asked.denied), asked.denied > 0 ? "deny" : ""),
      element("td", ago(asked.last_seen, now)),
    );
    body.append(row);
  }
  table.append(head, body);
  return table;
}

function edgeDetails(edge: GraphEdge, now: number): HTMLElement[] {
  const parts = [
    element("h2", edgeName(edge)),
    element("p", VERDICTS[edge.verdict], `verdict ${edge.verdict}`),
    rows([
      ["Protocol", spoken(edge) ? `${edge.protocol}, ${spoken(edge)}` : edge.protocol],
      ["Learned", edge.state],
      ["Connections", String(edge.connections)],
      ["Mutual TLS", share(edge.verified, edge.connections)],
      ["Refused", String(edge.denied)],
      ["Would be refused", String(edge.would_deny)],
      ["Failed", String(edge.failed)],
      ["Sent", bytes(edge.bytes_sent)],
      ["Received", bytes(edge.bytes_received)],
      ["Seen by replicas", String(edge.replicas)],
      ["First seen", ago(edge.first_seen, now)],
      ["Last seen", ago(edge.last_seen, now)],
    ]),
    ...(edge.operations.length > 0 ? [element("h3", "Operations"), operationTable(edge.operations, now)] : []),
    element("h3", "Identities"),
    rows([
      ["Source", edge.source_identities.join("\n")],
      ["Destination", edge.destination_identities.join("\n")],
    ]),
    element("h3", "Rule"),
    edge.rule === null ? element("p", "No rule covers this connection.", "hint") : ruleRows(edge.rule, now),
  ];
  if (edge.evidence.length > 0) {
    const list = element("ul", "", "evidence");
    list.append(...edge.evidence.map((line) => element("li", line)));
    parts.push(element("h3", "Evidence"), list);
  }
  return parts;
}

function lines(edges: GraphEdge[], which: (edge: GraphEdge) => boolean, name: (edge: GraphEdge) => string): string {
  return [...new Set(edges.filter(which).map(name))].sort().join("\n");
}

function nodeDetails(node: GraphNode, state: State): HTMLElement[] {
  const edges = [...state.edges.values()];
  return [
    element("h2", endName(node.id)),
    rows([
      ["Kind", node.external ? `${isHost(node.id) ? "a name" : "an address"} outside the inventory` : node.kind],
      ["Sidecar", node.transport ? "another mesh's proxy" : node.meshed ? "yes" : "no"],
      ["Instances", node.external ? "" : String(node.instances)],
      ["Inbound", node.inbound_mode],
      ["Outbound", node.outbound_mode],
      ["Identity", node.identity],
      ["Called by", lines(edges, (e) => e.to === node.id && e.verdict !== "deny", (e) => endName(e.from))],
      ["Calls", lines(edges, (e) => e.from === node.id && e.verdict !== "deny", (e) => edgeName(e).split(" → ")[1] ?? "")],
      ["Refused", lines(edges, (e) => (e.from === node.id || e.to === node.id) && e.verdict === "deny", edgeName)],
    ]),
  ];
}

interface Item {
  button: HTMLButtonElement;
  name: HTMLElement;
  tag: HTMLElement;
}

export class Panel {
  private readonly items = new Map<string, Item>();
  private order = "";
  private shownFor = "";

  constructor(
    private readonly details: HTMLElement,
    private readonly list: HTMLElement,
    private readonly search: HTMLInputElement,
    private readonly choose: (chosen: Chosen) => void,
  ) {}

  showDetails(state: State, chosen: Chosen, now: number): void {
    let parts: HTMLElement[] = [];
    if (chosen?.kind === "edge") {
      const edge = state.edges.get(chosen.id);
      if (edge) parts = edgeDetails(edge, now);
    } else if (chosen?.kind === "node") {
      const node = state.nodes.get(chosen.id);
      if (node) parts = nodeDetails(node, state);
    }
    if (parts.length === 0) {
      parts = [element("p", "Choose a connection or a workload, in the graph or in the list.", "hint")];
    }
    const body = element("div");
    body.append(...parts);
    const [old] = this.details.children;
    const subject = `${chosen?.kind} ${chosen?.id}`;
    if (old === undefined || subject !== this.shownFor) {
      this.details.replaceChildren(body);
      this.details.scrollTop = 0;
    } else {
      follow(old, body);
    }
    this.shownFor = subject;
  }

  showEdges(state: State, chosen: Chosen): void {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = [...state.edges.values()]
      .map((edge) => ({ edge, name: edgeName(edge) }))
      .filter(({ edge, name }) => {
        const text = `${name} ${edge.id} ${edge.verdict} ${edge.state} ${TAGS[edge.verdict]}`.toLowerCase();
        return words.every((word) => text.includes(word));
      })
      .sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const id of this.items.keys()) {
      if (!state.edges.has(id)) this.items.delete(id);
    }
    for (const { edge, name } of shown) {
      const item = this.items.get(edge.id) ?? this.makeItem(edge.id);
      item.button.className = `edge ${edge.verdict}`;
      item.button.dataset["verdict"] = edge.verdict;
      item.button.setAttribute("aria-pressed", String(chosen?.kind === "edge" && chosen.id === edge.id));
      if (item.name.textContent !== name) item.name.textContent = name;
      if (item.tag.textContent !== TAGS[edge.verdict]) item.tag.textContent = TAGS[edge.verdict];
    }
    const order = shown.map(({ edge }) => edge.id).join("\n");
    if (order === this.order) return; // keeps the keyboard's place
    this.order = order;
    this.list.replaceChildren(
      ...shown.map(({ edge }) => {
        const item = document.createElement("li");
        item.append(this.items.get(edge.id)?.button ?? "");
        return item;
      }),
    );
  }

  private makeItem(id: string): Item {
    const item = { button: document.createElement("button"), name: element("span"), tag: element("span", "", "tag") };
    item.button.type = "button";
    item.button.dataset["edge"] = id;
    item.button.append(item.name, item.tag);
    item.button.addEventListener("click", () => this.choose({ kind: "edge", id }));
    this.items.set(id, item);
    return item;
  }
}
