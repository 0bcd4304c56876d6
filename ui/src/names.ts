// How ends of connections are called on the page.

import type { GraphEdge } from "./model";

const OUTSIDE = "-/";
/** Where the controller counts addresses that are too many to be remembered one by one. */
const OTHERS = "-/0.0.0.0";

/** Where the controller counts the operations of a connection that are too many to be remembered one by one. */
const OTHER_OPERATIONS = "other";

/** `GET /cart/{id}`, as rules name it. */
export function operationName(name: string): string {
  return name === OTHER_OPERATIONS ? "all others" : name;
}

/** Whether what lies outside is known by a name; IPv6 addresses have colons, IPv4 addresses no letters. */
export function isHost(id: string): boolean {
  return id.startsWith(OUTSIDE) && !id.includes(":") && /[a-z]/.test(id);
}

/** `namespace/name` as it is; of what lies outside the inventory its bare address or name. */
export function endName(id: string): string {
  if (id === OTHERS) return "other addresses";
  return id.startsWith(OUTSIDE) ? id.slice(OUTSIDE.length) : id;
}

/** What is spoken above the transport, where that says more than its name. */
export function spoken(edge: GraphEdge): string {
  return edge.app_protocol.toUpperCase() === edge.protocol ? "" : edge.app_protocol;
}

/** `shop/front → shop/cart:8080`; the protocol is named where it is not TCP. */
export function edgeName(edge: GraphEdge): string {
  const to = endName(edge.to);
  const host = edge.to.startsWith(OUTSIDE) && to.includes(":") ? `[${to}]` : to;
  return `${endName(edge.from)} → ${host}:${edge.port}${edge.protocol === "TCP" ? "" : `/${edge.protocol}`}`;
}
