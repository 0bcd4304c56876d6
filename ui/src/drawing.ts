// The drawing of the graph: Cytoscape elements kept in step with the state, arranged anew only when its shape changes.

import cytoscape, { type Core, type ElementDefinition, type EventObject, type StylesheetJson } from "cytoscape";
import dagre from "cytoscape-dagre";

import type { GraphEdge, GraphNode, State } from "./model";

cytoscape.use(dagre);

export type Chosen = { kind: "edge" | "node"; id: string } | null;

const dark = matchMedia("(prefers-color-scheme: dark)");

export const COLOURS = { allow: "#2f8f4e", "would-deny": "#d08a00", deny: "#cf3030" } as const;

function style(): StylesheetJson {
  const ink = dark.matches ? "#e7ebe6" : "#1d2a20";
  const paper = dark.matches ? "#1b231d" : "#ffffff";
  return [
    {
      selector: "node",
      style: {
        shape: "round-rectangle",
        width: 118,
        height: 42,
        "background-color": paper,
        "border-width": 2,
        "border-color": "#5c7f66",
        label: "data(label)",
        color: ink,
        "font-size": 12,
        "text-valign": "center",
        "text-halign": "center",
        "text-wrap": "wrap",
        "text-max-width": "112px",
      },
    },
    { selector: "node[mode = 'enforce']", style: { "border-width": 4, "border-color": COLOURS.allow } },
    { selector: "node[mode = 'audit']", style: { "border-color": COLOURS["would-deny"], "border-width": 3 } },
    { selector: "node[mode = 'quarantine']", style: { "border-color": COLOURS.deny, "border-width": 4 } },
    { selector: "node[?outside]", style: { shape: "ellipse", "border-style": "dashed", "border-color": "#8a8f8b" } },
    {
      selector: "edge",
      style: {
        width: "data(width)",
        "curve-style": "bezier",
        "target-arrow-shape": "triangle",
        "line-color": COLOURS.allow,
        "target-arrow-color": COLOURS.allow,
        label: "data(label)",
        "font-size": 9,
        color: ink,
        "text-background-color": paper,
        "text-background-opacity": 0.85,
        "text-background-padding": "2px",
        "text-rotation": "autorotate",
      },
    },
    {
      selector: "edge[verdict = 'would-deny']",
      style: { "line-color": COLOURS["would-deny"], "target-arrow-color": COLOURS["would-deny"] },
    },
    {
      selector: "edge[verdict = 'deny']",
      style: { "line-color": COLOURS.deny, "target-arrow-color": COLOURS.deny, "target-arrow-shape": "tee" },
    },
    { selector: "edge[?plain]", style: { "line-style": "dashed" } },
    { selector: ":selected", style: { "overlay-color": "#3878c7", "overlay-opacity": 0.18, "overlay-padding": 4 } },
    { selector: ".faded", style: { opacity: 0.18 } },
  ];
}

function nodeData(node: GraphNode): Record<string, unknown> {
  const replicas = node.instances > 1 ? ` ×${node.instances}` : "";
  const label = node.external ? node.name : `${node.name}${replicas}\n${node.namespace}`;
  return { id: `n ${node.id}`, label, mode: node.inbound_mode, outside: node.external || !node.meshed };
}

function edgeData(edge: GraphEdge): Record<string, unknown> {
  return {
    id: `e ${edge.id}`,
    source: `n ${edge.from}`,
    target: `n ${edge.to}`,
    label: `${edge.port}${edge.app_protocol ? ` ${edge.app_protocol}` : ""}`,
    verdict: edge.verdict,
    plain: edge.connections > 0 && edge.verified < edge.connections,
    width: 1.5 + Math.min(4, Math.log10(1 + edge.connections)),
  };
}

export class Drawing {
  private readonly core: Core;

  constructor(container: HTMLElement, choose: (chosen: Chosen) => void) {
    this.core = cytoscape({ container, style: style(), minZoom: 0.2, maxZoom: 3 });
    this.core.on("tap", (event: EventObject) => {
      const target: unknown = event.target;
      if (target === this.core) choose(null);
    });
    this.core.on("tap", "edge", (event: EventObject) => choose({ kind: "edge", id: String(event.target.id()).slice(2) }));
    this.core.on("tap", "node", (event: EventObject) => choose({ kind: "node", id: String(event.target.id()).slice(2) }));
    dark.addEventListener("change", () => this.core.style(style()));
    new ResizeObserver(() => this.core.resize()).observe(container);
  }

  /** Bring the drawing in step. The arrangement stays as people moved it unless elements came or went. */
  update(state: State): void {
    const wanted = new Map<string, ElementDefinition>();
    for (const node of state.nodes.values()) {
      const data = nodeData(node);
      wanted.set(String(data["id"]), { group: "nodes", data });
    }
    for (const edge of state.edges.values()) {
      if (!state.nodes.has(edge.from) || !state.nodes.has(edge.to)) continue;
      const data = edgeData(edge);
      wanted.set(String(data["id"]), { group: "edges", data });
    }
    let reshaped = false;
    this.core.batch(() => {
      const gone = this.core.elements().filter((element) => !wanted.has(element.id()));
      if (gone.nonempty()) {
        gone.remove();
        reshaped = true;
      }
      const fresh: ElementDefinition[] = [];
      for (const [id, definition] of wanted) {
        const element = this.core.getElementById(id);
        if (element.nonempty()) element.data(definition.data);
        else fresh.push(definition);
      }
      if (fresh.length > 0) {
        this.core.add(fresh);
        reshaped = true;
      }
    });
    if (reshaped) this.arrange();
  }

  arrange(): void {
    this.core.layout({ name: "dagre", rankDir: "LR", nodeSep: 26, rankSep: 110, fit: true, padding: 28 } as never).run();
  }

  fit(): void {
    this.core.fit(undefined, 28);
  }

  /** Mark what is chosen and fade what has nothing to do with it. */
  choose(chosen: Chosen): void {
    this.core.batch(() => {
      this.core.elements().unselect().removeClass("faded");
      if (chosen === null) return;
      const element = this.core.getElementById(`${chosen.kind === "edge" ? "e" : "n"} ${chosen.id}`);
      if (element.empty()) return;
      element.select();
      const near = chosen.kind === "edge" ? element.union(element.connectedNodes()) : element.closedNeighborhood();
      this.core.elements().difference(near).addClass("faded");
    });
  }
}
