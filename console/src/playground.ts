// The page Playground: one prompt to the base model and up to four adapters, side by side.
import { call, eventsOf, key } from "./api";
import { el, short } from "./dom";
import { Page } from "./page";

const MOST_ADAPTERS = 4;

export function playground(base: string): Page {
  const picks = el("div", { class: "picks", role: "group", "aria-label": "Models" });
  const search = el("input", { type: "search", placeholder: "Search adapters", "aria-label": "Search models", input: () => list() });
  const prompt = el("textarea", { rows: 4, "aria-label": "Message", placeholder: "Your message" });
  const field = (label: string, node: HTMLElement) => el("label", { class: "field" }, label, node);
  const number = (value: string, step: string) => el("input", { type: "number", min: 0, step, value });
  const temperature = number("0", "0.1"), topP = number("1", "0.05"), most = number("64", "1"), seed = number("", "1");
  const system = el("input", { placeholder: "none" });
  const tools = el("textarea", { rows: 3, placeholder: "[{\"type\": \"function\", …}]" }), schema = el("textarea", { rows: 3, placeholder: "{\"type\": \"object\", …}" });
  const send = el("button", { class: "main", click: () => void run() }, "Send"), stop = el("button", { click: () => abort?.abort(), disabled: true }, "Stop");
  const says = el("p", { role: "status", class: "says" }), answers = el("div", { class: "grid", "aria-live": "polite" });
  let models: string[] = [base], chosen = [base], abort: AbortController | null = null;
  const node = el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Playground"), search), picks, prompt,
    el("div", { class: "bar" }, field("Temperature", temperature), field("top_p", topP), field("Most tokens", most), field("Seed", seed), field("System", system)),
    el("details", {}, el("summary", {}, "Tools and schema"), el("div", { class: "grid" }, field("Tools, as JSON", tools), field("JSON schema of the answer", schema))),
    el("div", { class: "bar" }, send, stop, el("button", { click: () => void copy(curl()) }, "Copy as curl"), el("button", { click: () => void copy(python()) }, "Copy as Python")), says, answers);

  function list(): void {
    const wanted = search.value.toLowerCase();
    const some = [...chosen, ...models.filter((name) => !chosen.includes(name) && name.toLowerCase().includes(wanted)).slice(0, 12)];
    picks.replaceChildren(...some.map((name) => el("button", { class: "pick", "aria-pressed": String(chosen.includes(name)), click: () => {
      if (chosen.includes(name)) chosen = chosen.filter((other) => other !== name);
      else if (chosen.filter((other) => other !== base).length < MOST_ADAPTERS || name === base) chosen = [...chosen, name];
      else says.textContent = `at most ${MOST_ADAPTERS} adapters at once`;
      list();
    } }, name)));
  }

  function body(model: string): Record<string, unknown> {
    const messages = [...(system.value ? [{ role: "system", content: system.value }] : []), { role: "user", content: prompt.value }];
    const wanted: Record<string, unknown> = { model, messages, max_tokens: Number(most.value), temperature: Number(temperature.value), top_p: Number(topP.value) };
    if (seed.value) wanted.seed = Number(seed.value);
    if (tools.value.trim()) wanted.tools = JSON.parse(tools.value);
    if (schema.value.trim()) wanted.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema.value) } };
    return wanted;
  }

  async function run(): Promise<void> {
    says.textContent = ""; says.className = "says";
    try { body(base); } catch (error) { says.textContent = "Tools or schema are no JSON: " + (error as Error).message; says.className = "says bad"; return; }
    abort = new AbortController(); stop.disabled = false; send.disabled = true;
    answers.replaceChildren();
    await Promise.all(chosen.map((model) => one(model, abort!.signal)));
    stop.disabled = true; send.disabled = false;
  }

  async function one(model: string, signal: AbortSignal): Promise<void> {
    const text = el("pre", { class: "answer" }), figures = el("p", { class: "dim" }, "waiting …");
    answers.append(el("section", { class: "card" }, el("h2", {}, model), text, figures));
    const start = performance.now();
    let first = 0, usage: any = null, finish = "";
    try {
      const answer = await call("v1/chat/completions", "POST", { ...body(model), stream: true, stream_options: { include_usage: true } }, signal);
      for await (const [, data] of eventsOf(answer)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.usage) usage = chunk.usage;
        const choice = chunk.choices?.[0];
        const gained = (choice?.delta?.content ?? "") + (choice?.delta?.tool_calls ? JSON.stringify(choice.delta.tool_calls) + "\n" : "");
        if (gained) { first ||= performance.now() - start; text.append(gained); }
        finish = choice?.finish_reason ?? finish;
      }
      const whole = performance.now() - start, tokens = usage?.completion_tokens ?? 0;
      figures.textContent = `${usage?.prompt_tokens ?? "?"} prompt, ${tokens} output tokens; first after ${first.toFixed(0)} ms, whole ${whole.toFixed(0)} ms, ${short(tokens / (whole / 1000))} tokens/s; ended by ${finish || "the server"}`;
    } catch (error) { figures.textContent = signal.aborted ? "stopped" : String((error as Error).message); figures.className = signal.aborted ? "dim" : "bad"; }
  }

  const root = () => new URL("..", location.href).href;
  const quoted = (text: string) => "'" + text.replaceAll("'", "'\\''") + "'";
  const curl = () => chosen.map((model) => `curl ${quoted(root() + "v1/chat/completions")} -H 'Content-Type: application/json'${key() ? " -H \"Authorization: Bearer $EVENFLOW_KEY\"" : ""} -d ${quoted(JSON.stringify(body(model)))}`).join("\n");
  const python = () => `import json, os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(root() + "v1")}, api_key=os.environ.get("EVENFLOW_KEY", "none"))\nfor model in ${JSON.stringify(chosen)}:\n    body = json.loads(${JSON.stringify(JSON.stringify({ ...body(base), model: undefined }))})\n    print(model, client.chat.completions.create(model=model, **body).choices[0].message.content)\n`;
  async function copy(text: string): Promise<void> {
    try { await navigator.clipboard.writeText(text); says.textContent = "copied; the key is not in it"; } catch { says.replaceChildren(el("textarea", { rows: 5, readonly: true, "aria-label": "To copy" }, text)); }
  }
  list();
  void call("v1/models").then(async (answer) => { models = (await answer.json()).data.map((model: { id: string }) => model.id); list(); }).catch((error) => { says.textContent = String(error.message); });
  return { node, leave: () => abort?.abort() };
}
