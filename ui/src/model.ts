// The shapes of docs/api.md that the page uses, and the state that server-sent events build up.

export type Verdict = "allow" | "would-deny" | "deny";

export interface GraphNode {
  id: string;
  namespace: string;
  name: string;
  kind: string;
  meshed: boolean;
  /** Whose proxy it has when it is meshed: empty for a sidecar, else another mesh's. */
  transport: string;
  instances: number;
  identity: string;
  inbound_mode: string;
  outbound_mode: string;
  external: boolean;
}

export interface Rule {
  id: string;
  from: string;
  to: string;
  ports: string[];
  protocol: string;
  operations: string[];
  effect: string;
  origin: string;
  owner: string;
  reason: string;
  expires_at: number | null;
  evidence: string[];
}

export interface Operation {
  operation: string;
  requests: number;
  denied: number;
  would_deny: number;
  first_seen: number;
  last_seen: number;
}

export interface GraphEdge {
  id: string;
  from: string;
  to: string;
  port: number;
  protocol: string;
  app_protocol: string;
  state: string;
  verdict: Verdict;
  connections: number;
  denied: number;
  would_deny: number;
  failed: number;
  bytes_sent: number;
  bytes_received: number;
  verified: number;
  first_seen: number;
  last_seen: number;
  source_identities: string[];
  destination_identities: string[];
  replicas: number;
  operations: Operation[];
  evidence: string[];
  rule: Rule | null;
}

export interface Graph {
  generation: number;
  at: number;
  nodes: GraphNode[];
  edges: GraphEdge[];
}

export interface Delta extends Graph {
  removed_nodes: string[];
  removed_edges: string[];
}

/** Everything the page knows: replaced by a whole graph, changed by deltas. */
export class State {
  readonly nodes = new Map<string, GraphNode>();
  readonly edges = new Map<string, GraphEdge>();
  generation = 0;
  private at = 0;
  private receivedAt = 0;

  replace(graph: Graph): void {
    this.nodes.clear();
    this.edges.clear();
    this.apply({ ...graph, removed_nodes: [], removed_edges: [] });
  }

  apply(delta: Delta): void {
    for (const node of delta.nodes) this.nodes.set(node.id, node);
    for (const edge of delta.edges) this.edges.set(edge.id, edge);
    for (const id of delta.removed_edges) this.edges.delete(id);
    for (const id of delta.removed_nodes) this.nodes.delete(id);
    this.generation = delta.generation;
    this.at = delta.at;
    this.receivedAt = performance.now();
  }

  /** The controller's clock now, seconds since the epoch: that of this machine may be another. */
  now(): number {
    return this.at + (performance.now() - this.receivedAt) / 1000;
  }
}
