// Wires the page: the live stream changes the state, the state is drawn at most once a frame.

import "./style.css";

import { Drawing, type Chosen } from "./drawing";
import { follow, takeToken, tokenGiven } from "./live";
import { State } from "./model";
import { Panel } from "./panel";

function part<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no #${id}`);
  return found;
}

const state = new State();
let chosen: Chosen = null;
let due = false;

function choose(next: Chosen): void {
  chosen = next;
  drawing.choose(chosen);
  redraw();
}

const drawing = new Drawing(part("graph", HTMLDivElement), choose);
const search = part("search", HTMLInputElement);
const panel = new Panel(part("details", HTMLElement), part("edges", HTMLUListElement), search, choose);
const totals = part("totals", HTMLParagraphElement);
const link = part("link", HTMLParagraphElement);

function redraw(): void {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const edges = [...state.edges.values()];
    const refused = edges.filter((edge) => edge.verdict === "deny").length;
    const open = edges.filter((edge) => edge.verdict === "would-deny").length;
    totals.textContent =
      `${state.nodes.size} workloads, ${edges.length} connections` +
      (open > 0 ? `, ${open} without a rule` : "") +
      (refused > 0 ? `, ${refused} refused` : "");
    drawing.update(state);
    panel.showEdges(state, chosen);
    panel.showDetails(state, chosen, state.now());
  });
}

search.addEventListener("input", redraw);
part("fit", HTMLButtonElement).addEventListener("click", () => drawing.fit());
part("arrange", HTMLButtonElement).addEventListener("click", () => drawing.arrange());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose(null);
});

// what is chosen tells how long ago things were, also while nothing happens
setInterval(() => {
  if (chosen !== null) redraw();
}, 1000);

// the right address, given in a tab that had a wrong one
addEventListener("hashchange", () => {
  if (tokenGiven()) location.reload();
});

void follow(takeToken(), {
  graph(graph) {
    state.replace(graph);
    redraw();
  },
  delta(delta) {
    state.apply(delta);
    redraw();
  },
  link(condition, text) {
    link.dataset["state"] = condition;
    link.textContent = text;
  },
});
