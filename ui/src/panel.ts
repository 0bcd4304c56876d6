// The panel beside the graph: what is chosen, and the list of connections. Text is set as text, never as markup.

import type { Chosen } from "./drawing";
import type { GraphEdge, GraphNode, Rule, State } from "./model";
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

const VERDICTS = {
  allow: "allowed by a rule",
  "would-deny": "allowed for now: no rule yet",
  deny: "refused",
} as const;

function ruleRows(rule: Rule, now: number): HTMLElement {
  const expires = rule.expires_at === null ? "never" : rule.expires_at > now ? `in ${Math.ceil(rule.expires_at - now)} s` : "expired";
  return rows([
    ["Rule", rule.id],
    ["Effect", rule.effect],
    ["Origin", rule.origin],
    ["Owner", rule.owner],
    ["Reason", rule.reason],
    ["Expires", expires],
  ]);
}

function edgeDetails(edge: GraphEdge, now: number): HTMLElement[] {
  const parts = [
    element("h2", `${edge.from} → ${edge.to}:${edge.port}`),
    element("p", VERDICTS[edge.verdict], `verdict ${edge.verdict}`),
    rows([
      ["Protocol", edge.app_protocol ? `${edge.protocol}, ${edge.app_protocol}` : edge.protocol],
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

function nodeDetails(node: GraphNode, state: State): HTMLElement[] {
  const edges = [...state.edges.values()];
  return [
    element("h2", node.id),
    rows([
      ["Kind", node.external ? "outside the mesh" : node.kind],
      ["Sidecar", node.meshed ? "yes" : "no"],
      ["Instances", String(node.instances)],
      ["Inbound", node.inbound_mode],
      ["Outbound", node.outbound_mode],
      ["Identity", node.identity],
      ["Called by", edges.filter((e) => e.to === node.id && e.verdict !== "deny").map((e) => e.from).join("\n")],
      ["Calls", edges.filter((e) => e.from === node.id && e.verdict !== "deny").map((e) => `${e.to}:${e.port}`).join("\n")],
    ]),
  ];
}

export class Panel {
  private readonly items = new Map<string, HTMLButtonElement>();
  private order = "";

  constructor(
    private readonly details: HTMLElement,
    private readonly list: HTMLElement,
    private readonly search: HTMLInputElement,
    private readonly choose: (chosen: Chosen) => void,
  ) {}

  showDetails(state: State, chosen: Chosen): void {
    let parts: HTMLElement[] = [];
    if (chosen?.kind === "edge") {
      const edge = state.edges.get(chosen.id);
      if (edge) parts = edgeDetails(edge, state.at);
    } else if (chosen?.kind === "node") {
      const node = state.nodes.get(chosen.id);
      if (node) parts = nodeDetails(node, state);
    }
    if (parts.length === 0) {
      parts = [element("p", "Choose a connection or a workload, in the graph or in the list.", "hint")];
    }
    this.details.replaceChildren(...parts);
  }

  showEdges(state: State, chosen: Chosen): void {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = [...state.edges.values()]
      .filter((edge) => words.every((word) => `${edge.id} ${edge.verdict} ${edge.state}`.toLowerCase().includes(word)))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    for (const id of this.items.keys()) {
      if (!state.edges.has(id)) this.items.delete(id);
    }
    for (const edge of shown) {
      const button = this.items.get(edge.id) ?? this.makeItem(edge.id);
      button.className = `edge ${edge.verdict}`;
      button.dataset["verdict"] = edge.verdict;
      button.textContent = `${edge.from} → ${edge.to}:${edge.port}`;
      button.setAttribute("aria-pressed", String(chosen?.kind === "edge" && chosen.id === edge.id));
    }
    const order = shown.map((edge) => edge.id).join("\n");
    if (order === this.order) return; // keeps the keyboard's place
    this.order = order;
    this.list.replaceChildren(
      ...shown.map((edge) => {
        const item = document.createElement("li");
        item.append(this.items.get(edge.id) ?? "");
        return item;
      }),
    );
  }

  private makeItem(id: string): HTMLButtonElement {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset["edge"] = id;
    button.addEventListener("click", () => this.choose({ kind: "edge", id }));
    this.items.set(id, button);
    return button;
  }
}
