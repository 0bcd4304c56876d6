// Where the workloads stand: in ranks, callers before what they call, spread over the room that there is.
// What was refused does not decide where a workload stands, unless nothing else is known of it: an intruder must not
// tear the picture of the mesh apart. No drawing here.

import { Graph, layout } from "@dagrejs/dagre";

export interface Box {
  id: string;
  width: number;
  height: number;
}

export interface Line {
  id: string;
  source: string;
  target: string;
  refused: boolean;
}

export interface Place {
  x: number;
  y: number;
}

export interface Arrangement {
  places: Map<string, Place>;
  /** Where a line that passes other ranks goes, so that it does not run behind what stands there; by its id. */
  bends: Map<string, Place[]>;
}

const BETWEEN = { least: 30, most: 110 };
const RANKS = { least: 90, most: 190 };

/**
 * Places for all boxes.
 * @param aspect width ÷ height of the room
 */
export function arrange(boxes: Box[], lines: Line[], aspect: number): Arrangement {
  const across = aspect >= 0.9;
  const kept = decisive(lines);
  const first = placed(boxes, kept, across, BETWEEN.least, RANKS.least);
  // the first try says how much room is left in either direction
  const wanted = across ? first.width / aspect : first.height * aspect;
  const side = across ? first.height : first.width;
  if (side < wanted) {
    const more = (wanted - side) / Math.max(first.fullest - 1, 1);
    return placed(boxes, kept, across, Math.min(BETWEEN.least + more, BETWEEN.most), RANKS.least);
  }
  const length = across ? first.width : first.height;
  const room = across ? first.height * aspect : first.width / aspect;
  const more = Math.max(room - length, 0) / Math.max(first.ranks - 1, 1);
  return placed(boxes, kept, across, BETWEEN.least, Math.min(RANKS.least + more, RANKS.most));
}

function decisive(lines: Line[]): Line[] {
  const known = new Set<string>();
  for (const line of lines) {
    if (!line.refused) known.add(line.source).add(line.target);
  }
  return lines.filter((line) => !line.refused || !known.has(line.source) || !known.has(line.target));
}

interface Placed extends Arrangement {
  width: number;
  height: number;
  ranks: number;
  fullest: number;
}

function placed(boxes: Box[], lines: Line[], across: boolean, between: number, ranks: number): Placed {
  const graph = new Graph({ multigraph: true });
  graph.setGraph({ rankdir: across ? "LR" : "TB", nodesep: between, ranksep: ranks, edgesep: 14, acyclicer: "greedy" });
  for (const { id, width, height } of boxes) graph.setNode(id, { width, height });
  for (const { id, source, target, refused } of lines) {
    graph.setEdge({ v: source, w: target, name: id }, { weight: refused ? 1 : 3, minlen: 1 });
  }
  layout(graph);
  const bends = new Map<string, Place[]>();
  for (const { id, source, target } of lines) {
    const { points = [] } = graph.edge({ v: source, w: target, name: id }) as { points?: Place[] };
    // the ends, and one between two neighbouring ranks
    if (points.length > 3) bends.set(id, points.slice(1, -1));
  }
  const places = new Map<string, Place>();
  const members = new Map<number, number>();
  const reach = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  for (const { id, width, height } of boxes) {
    const { x = 0, y = 0 } = graph.node(id) as Partial<Place>;
    places.set(id, { x, y });
    const rank = Math.round(across ? x : y);
    members.set(rank, (members.get(rank) ?? 0) + 1);
    reach.left = Math.min(reach.left, x - width / 2);
    reach.right = Math.max(reach.right, x + width / 2);
    reach.top = Math.min(reach.top, y - height / 2);
    reach.bottom = Math.max(reach.bottom, y + height / 2);
  }
  return {
    places,
    bends,
    width: Math.max(reach.right - reach.left, 1),
    height: Math.max(reach.bottom - reach.top, 1),
    ranks: members.size,
    fullest: Math.max(...members.values(), 1),
  };
}
