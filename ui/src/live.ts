// The live stream of the graph. EventSource cannot send an Authorization header, so the stream is read with fetch.

import type { Delta, Graph } from "./model";

export type LinkState = "connecting" | "live" | "lost" | "refused";

export interface Listener {
  graph(graph: Graph): void;
  delta(delta: Delta): void;
  link(state: LinkState, text: string): void;
}

/** Splits a stream of text into server-sent events (WHATWG HTML, section 9.2.6, as far as the controller uses it). */
export class EventReader {
  private rest = "";
  private event = "message";
  private data: string[] = [];

  /** Takes the next piece of the stream and returns the events that it completes. */
  push(piece: string): { event: string; data: string }[] {
    const done: { event: string; data: string }[] = [];
    const lines = (this.rest + piece).split(/\r\n|\n/);
    this.rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (this.data.length > 0) done.push({ event: this.event, data: this.data.join("\n") });
        this.event = "message";
        this.data = [];
      } else if (line.startsWith("event:")) {
        this.event = line.slice(6).trim();
      } else if (line.startsWith("data:")) {
        this.data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return done;
  }
}

/** The token in the address, behind the `#`, which is never sent. */
export function tokenGiven(): string {
  return new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
}

/** The token: from the address, out of whose bar it is taken, else as this tab has kept it. */
export function takeToken(): string {
  const given = tokenGiven();
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return given || (sessionStorage.getItem("token") ?? "");
}

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;
/** The controller says something every 15 s; when it does not, the connection is dead without having ended. */
const SILENCE = 40_000;

/** Follows the graph for ever, with growing pauses while the controller is away. */
export async function follow(token: string, listener: Listener): Promise<void> {
  let pause = FIRST_PAUSE;
  for (;;) {
    listener.link("connecting", "connecting");
    const silent = new AbortController();
    const watch = (): number => setTimeout(() => silent.abort(new Error("nothing was heard for too long")), SILENCE);
    let watchdog = watch();
    try {
      const response = await fetch("/api/v1/graph/live", {
        headers: { Authorization: `Bearer ${token}`, Accept: "text/event-stream" },
        cache: "no-store",
        signal: silent.signal,
      });
      if (response.status === 401 || response.status === 403) {
        listener.link("refused", "no access: open the address that the controller or the demo printed, with its #token=");
        return;
      }
      if (!response.ok || response.body === null) throw new Error(`status ${response.status}`);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const events = new EventReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        clearTimeout(watchdog);
        watchdog = watch();
        for (const { event, data } of events.push(value)) {
          pause = FIRST_PAUSE;
          listener.link("live", "live");
          if (event === "graph") listener.graph(JSON.parse(data) as Graph);
          else if (event === "delta") listener.delta(JSON.parse(data) as Delta);
        }
      }
    } catch (error) {
      console.info("the stream ended:", error);
    } finally {
      clearTimeout(watchdog);
    }
    listener.link("lost", "the controller does not answer; the mesh goes on with the last policy");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, LONGEST_PAUSE);
  }
}
