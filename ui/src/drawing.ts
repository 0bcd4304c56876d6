// The drawing of the graph: Cytoscape elements kept in step with the state. What people moved stays where they put it.

import cytoscape, { type Core, type ElementDefinition, type EventObject, type StylesheetJson } from "cytoscape";

import { arrange, type Box, type Line, type Place } from "./layout";
import type { GraphEdge, GraphNode, State } from "./model";
import { endName, spoken } from "./names";

export type Chosen = { kind: "edge" | "node"; id: string } | null;

const dark = matchMedia("(prefers-color-scheme: dark)");

const HEIGHT = 44;
const MARGIN = 28;
/** A graph of two workloads is not blown up beyond this. */
const CLOSEST = 1.25;

function style(): StylesheetJson {
  // the style sheet's colours are written with light-dark(), which the canvas does not know: an element resolves them
  const probe = document.createElement("i");
  document.body.append(probe);
  const resolved = (name: string): string => {
    probe.style.setProperty("color", `var(--${name})`);
    return getComputedStyle(probe).color;
  };
  const [ink, paper, dim] = [resolved("ink"), resolved("card"), resolved("dim")];
  const colours = { allow: resolved("allow"), "would-deny": resolved("would-deny"), deny: resolved("deny") };
  probe.remove();
  return [
    {
      selector: "node",
      style: {
        shape: "round-rectangle",
        width: "data(width)",
        height: HEIGHT,
        "background-color": paper,
        "border-width": 2,
        "border-color": dim,
        label: "data(label)",
        color: ink,
        "font-size": 13,
        "text-valign": "center",
        "text-halign": "center",
        "text-wrap": "wrap",
      },
    },
    { selector: "node[mode = 'enforce']", style: { "border-width": 4, "border-color": colours.allow } },
    { selector: "node[mode = 'audit']", style: { "border-width": 3, "border-color": colours["would-deny"] } },
    { selector: "node[mode = 'quarantine']", style: { "border-width": 4, "border-color": colours.deny } },
    { selector: "node[?bare]", style: { "border-style": "dashed", "border-color": dim, "border-width": 2 } },
    { selector: "node[?outside]", style: { shape: "ellipse", "background-opacity": 0.6 } },
    {
      selector: "edge",
      style: {
        width: "data(width)",
        "curve-style": "bezier",
        "target-arrow-shape": "triangle",
        "line-color": colours.allow,
        "target-arrow-color": colours.allow,
        label: "data(label)",
        "font-size": 10,
        "min-zoomed-font-size": 7,
        color: ink,
        "text-background-color": paper,
        "text-background-opacity": 0.85,
        "text-background-padding": "2px",
        "text-rotation": "autorotate",
      },
    },
    {
      selector: "edge[distances]",
      style: {
        "curve-style": "round-segments",
        "edge-distances": "node-position",
        "segment-distances": "data(distances)",
        "segment-weights": "data(weights)",
        "segment-radii": 40,
      } as never, // the types know no round-segments
    },
    {
      selector: "edge[verdict = 'would-deny']",
      style: { "line-color": colours["would-deny"], "target-arrow-color": colours["would-deny"], "target-arrow-shape": "vee" },
    },
    {
      selector: "edge[verdict = 'deny']",
      style: { "line-color": colours.deny, "target-arrow-color": colours.deny, "target-arrow-shape": "tee" },
    },
    { selector: "edge[?plain]", style: { "line-style": "dashed" } },
    { selector: ":selected", style: { "overlay-color": "#3878c7", "overlay-opacity": 0.18, "overlay-padding": 4 } },
    { selector: ".faded", style: { opacity: 0.16 } },
  ];
}

function nodeData(node: GraphNode): Record<string, unknown> {
  const replicas = node.instances > 1 ? ` ×${node.instances}` : "";
  const lines = node.external ? [endName(node.id), "outside"] : [`${node.name}${replicas}`, node.namespace];
  const longest = Math.max(...lines.map((line) => line.length));
  return {
    id: `n ${node.id}`,
    label: lines.join("\n"),
    width: Math.max(110, Math.round(longest * 7.2) + (node.external ? 40 : 22)),
    mode: node.inbound_mode,
    bare: node.external || !node.meshed,
    outside: node.external,
  };
}

function edgeData(edge: GraphEdge): Record<string, unknown> {
  return {
    id: `e ${edge.id}`,
    source: `n ${edge.from}`,
    target: `n ${edge.to}`,
    label: `${edge.port} ${spoken(edge)}`.trim(),
    verdict: edge.verdict,
    plain: edge.connections > 0 && edge.verified < edge.connections,
    width: 1.5 + Math.min(4, Math.log10(1 + edge.connections + edge.denied)),
  };
}

/** Points beside a line, as Cytoscape wants them: how far along it, and how far off it. */
function along(from: Place, to: Place, way: Place[]): { weights: number[]; distances: number[] } {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.max(Math.hypot(dx, dy), 1);
  return {
    weights: way.map((point) => ((point.x - from.x) * dx + (point.y - from.y) * dy) / length ** 2),
    distances: way.map((point) => ((point.y - from.y) * dx - (point.x - from.x) * dy) / length),
  };
}

export class Drawing {
  private readonly core: Core;
  /** Whether somebody has moved the view or a workload: from then on nothing moves by itself. */
  private moved = false;
  private across = true;

  constructor(
    private readonly container: HTMLElement,
    choose: (chosen: Chosen) => void,
  ) {
    this.core = cytoscape({ container, style: style(), minZoom: 0.15, maxZoom: 3 });
    this.core.on("tap", (event: EventObject) => {
      const target: unknown = event.target;
      if (target === this.core) choose(null);
    });
    this.core.on("tap", "edge", (event: EventObject) => choose({ kind: "edge", id: String(event.target.id()).slice(2) }));
    this.core.on("tap", "node", (event: EventObject) => choose({ kind: "node", id: String(event.target.id()).slice(2) }));
    this.core.on("dragpan scrollzoom pinchzoom dragfree", () => {
      this.moved = true;
    });
    dark.addEventListener("change", () => this.core.style(style()));
    new ResizeObserver(() => this.resized()).observe(container);
  }

  /** Bring the drawing in step with the state. */
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
    const fresh: ElementDefinition[] = [];
    let reshaped = false;
    this.core.batch(() => {
      const gone = this.core.elements().filter((element) => !wanted.has(element.id()));
      reshaped = gone.nonempty();
      gone.remove();
      for (const [id, definition] of wanted) {
        const element = this.core.getElementById(id);
        if (element.nonempty()) element.data(definition.data);
        else fresh.push(definition);
      }
      this.core.add(fresh);
    });
    if (fresh.length === 0 && !reshaped) return;
    if (this.moved) this.place(new Set(fresh.map((definition) => String(definition.data.id))));
    else this.arrange();
  }

  /** Arrange everything anew. */
  arrange(): void {
    this.moved = false;
    this.place(null);
    this.fit();
  }

  fit(): void {
    this.moved = false;
    this.core.fit(undefined, MARGIN);
    if (this.core.zoom() > CLOSEST) {
      this.core.zoom(CLOSEST);
      this.core.center();
    }
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

  /** @param only the elements that may be moved; null for all */
  private place(only: Set<string> | null): void {
    const boxes: Box[] = this.core.nodes().map((node) => ({ id: node.id(), width: Number(node.data("width")), height: HEIGHT }));
    const lines: Line[] = this.core.edges().map((edge) => ({
      id: edge.id(),
      source: edge.source().id(),
      target: edge.target().id(),
      refused: edge.data("verdict") === "deny",
    }));
    const aspect = Math.max(this.container.clientWidth, 1) / Math.max(this.container.clientHeight, 1);
    this.across = aspect >= 0.9;
    const { places, bends } = arrange(boxes, lines, aspect);
    this.core.batch(() => {
      for (const [id, place] of places) {
        if (only === null || only.has(id)) this.core.getElementById(id).position(place);
      }
      if (only !== null) return;
      this.core.edges().removeData("distances weights");
      for (const [id, way] of bends) {
        const edge = this.core.getElementById(id);
        edge.data(along(edge.source().position(), edge.target().position(), way));
      }
    });
  }

  private resized(): void {
    this.core.resize();
    if (this.moved || this.core.nodes().empty()) return;
    const across = this.container.clientWidth >= 0.9 * this.container.clientHeight;
    if (across === this.across) this.fit();
    else this.arrange();
  }
}
