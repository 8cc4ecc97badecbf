// Calls of the server, with the key of this session; and the stream of steps, which comes back by itself.
const KEY = "evenflow-key";
export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value: string) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

export class Refusal extends Error {
  constructor(readonly status: number, message: string) { super(message); }
}

/** `path` is relative to the server's root, so that the console works behind a root path. */
export async function call(path: string, method = "GET", body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key()) headers.authorization = "Bearer " + key();
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch("../" + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  if (!answer.ok) {
    const text = await answer.text();
    let message = text.slice(0, 500);
    try { message = JSON.parse(text).error.message ?? message; } catch { /* not JSON: the text itself */ }
    throw new Refusal(answer.status, message || "status " + answer.status);
  }
  return answer;
}

export async function* eventsOf(answer: Response): AsyncGenerator<[string, string]> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop()!;
    for (const part of parts) {
      let name = "", data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) yield [name, data];
    }
  }
}

export interface Hello { client: string | null; version: string; model: string; policy: string; started: number; needs_key: boolean; has_usage: boolean; }
export type Row = [name: string, weight: number, service: number, counter: number | null, waiting: number, running: number,
  prompt: number, completion: number, cached: number, rejected: number, ttft: number[]];
export type Whole = Record<string, number> & { ttft_s: number[]; others: Row | null };
export interface Step { t: number; rows: Row[]; whole: Whole | null; }

interface Watcher { hello(hello: Hello): void; step(step: Step): void; live(): void; link(state: string): void; refused(message: string): void; }

/** Follows the steps until the key is refused; a server that is away is asked again, ever more slowly. */
export async function follow(watcher: Watcher, signal: AbortSignal): Promise<void> {
  let wait = 500;
  while (!signal.aborted) {
    try {
      watcher.link("connecting");
      const answer = await call("console/events", "GET", undefined, signal);
      for await (const [name, data] of eventsOf(answer)) {
        const body = JSON.parse(data);
        if (name === "hello") watcher.hello(body);
        else if (name === "step") watcher.step(body);
        else if (name === "live") { wait = 500; watcher.live(); watcher.link("live"); }
        else if (name === "refused") throw new Refusal(body.status, body.message);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal && (error.status === 401 || error.status === 403)) { watcher.refused(error.message); return; }
    }
    watcher.link("server away, trying again");
    await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
    wait = Math.min(wait * 2, 10_000);
  }
}
