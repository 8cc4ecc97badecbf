// The page Playground: one conversation put to the base model and up to four adapters, side by side.

import { el, say, seconds } from "./dom.js";
import { BASE, call, events, json } from "./session.js";

const MOST = 5;

export class Playground {
  constructor(who) {
    this.who = who;
    this.histories = new Map();
    this.models = el("select", { multiple: true, size: "5", "aria-label": "Models" });
    this.prompt = el("textarea", { id: "prompt", placeholder: "Ask something", required: true });
    this.system = el("textarea", { placeholder: "System message" });
    this.tools = el("textarea", { placeholder: '[{"type": "function", "function": {"name": "hours", "parameters": {...}}}]', spellcheck: "false" });
    this.schema = el("textarea", { placeholder: '{"type": "object", "properties": {...}}', spellcheck: "false" });
    const field = (name, value, step, least) => el("input", { class: "small", type: "number", value, step, min: least, "data-name": name });
    this.numbers = [["max_tokens", "128", "1", "1"], ["temperature", "0", "0.1", "0"], ["top_p", "1", "0.05", "0"]].map(([name, ...rest]) => field(name, ...rest));
    this.answers = el("div", { class: "answers", "aria-live": "polite" });
    this.send = el("button", { type: "submit", class: "main" }, "Send");
    this.stop = el("button", { type: "button", disabled: true, onclick: () => this.aborter?.abort() }, "Stop");
    const form = el("form", { class: "card" },
      el("div", { class: "fields" }, el("label", {}, `Models, up to ${MOST}`, this.models),
        ...this.numbers.map((input) => el("label", {}, input.dataset.name.replace("_", " "), input))),
      el("label", { class: "wide" }, "Message", this.prompt),
      el("details", {}, el("summary", {}, "System message, tools, schema"), el("label", {}, "System message", this.system),
        el("label", {}, "Tools, as JSON", this.tools), el("label", {}, "Schema of the answer, as JSON", this.schema)),
      el("div", { class: "bar" }, this.send, this.stop, el("button", { type: "button", onclick: () => this.clear() }, "New conversation"), el("span", { class: "spring" }),
        el("button", { type: "button", onclick: () => this.copy(this.curl()) }, "Copy as curl"), el("button", { type: "button", onclick: () => this.copy(this.python()) }, "Copy as Python")));
    form.addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    this.code = el("pre", { hidden: true });
    this.node = el("div", {}, form, this.code, this.answers);
  }

  async shown() {
    if (this.models.options.length) return;
    try {
      const models = (await json("v1/models")).data.map((model) => model.id);
      this.models.replaceChildren(...models.map((name, i) => el("option", { value: name, selected: i === 0 }, name)));
    } catch (error) {
      say(error.message);
    }
  }

  chosen() {
    return [...this.models.selectedOptions].map((option) => option.value).slice(0, MOST);
  }

  clear() {
    this.histories.clear();
    this.answers.replaceChildren();
  }

  // The body of a request; raises for boxes that hold no JSON.
  body(model, messages) {
    const body = { model, messages };
    for (const input of this.numbers) if (input.value !== "") body[input.dataset.name] = Number(input.value);
    if (this.tools.value.trim()) body.tools = parsed(this.tools.value, "tools");
    if (this.schema.value.trim())
      body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: parsed(this.schema.value, "schema"), strict: true } };
    return body;
  }

  messages(model, prompt) {
    const system = this.system.value.trim() ? [{ role: "system", content: this.system.value.trim() }] : [];
    return [...system, ...(this.histories.get(model) ?? []), { role: "user", content: prompt }];
  }

  async ask() {
    const prompt = this.prompt.value.trim(), models = this.chosen();
    if (!prompt || !models.length) return say("Choose a model and write a message.");
    say("");
    let bodies;
    try {
      bodies = models.map((model) => this.body(model, this.messages(model, prompt)));
    } catch (error) {
      return say(error.message);
    }
    this.aborter = new AbortController();
    this.send.disabled = true;
    this.stop.disabled = false;
    const cards = models.map((model) => new Answer(model, prompt));
    this.answers.replaceChildren(...cards.map((card) => card.node));
    await Promise.all(bodies.map(async (body, i) => {
      const answer = await cards[i].run(body, this.aborter.signal);
      if (answer !== null) this.histories.set(body.model, [...(this.histories.get(body.model) ?? []), { role: "user", content: prompt }, { role: "assistant", content: answer }]);
    }));
    this.send.disabled = false;
    this.stop.disabled = true;
  }

  example() {
    const model = this.chosen()[0] ?? this.who.models[0];
    return this.body(model, this.messages(model, this.prompt.value.trim() || "Hello"));
  }

  curl() {
    const quoted = JSON.stringify(this.example(), null, 1).replaceAll("'", "'\\''");
    const key = this.who.needs_key ? " -H 'Authorization: Bearer YOUR_KEY'" : "";
    return `curl ${new URL("v1/chat/completions", BASE)}${key} -H 'Content-Type: application/json' -d '${quoted}'`;
  }

  python() {
    const { model, messages, ...rest } = this.example();
    const more = Object.entries(rest).map(([name, value]) => `\n    ${name}=json.loads(${JSON.stringify(JSON.stringify(value))}),`).join("");
    return `import json\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(String(new URL("v1", BASE)))}, api_key="YOUR_KEY")\n`
      + `answer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n    messages=json.loads(${JSON.stringify(JSON.stringify(messages))}),${more}\n)\nprint(answer.choices[0].message.content)\n`;
  }

  copy(text) {
    try {
      this.code.textContent = text;
      this.code.hidden = false;
      navigator.clipboard?.writeText(text).catch(() => {});
    } catch (error) {
      say(error.message);
    }
  }
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The ${what} box does not hold JSON: ${error.message}`);
  }
}

class Answer {
  constructor(model) {
    this.thought = el("div", { class: "answer thought" });
    this.text = el("div", { class: "answer" });
    this.calls = el("div", {});
    this.facts = el("p", { class: "soft" }, "waiting");
    this.node = el("section", { class: "card" }, el("h2", {}, model), this.thought, this.text, this.calls, this.facts);
  }

  async run(body, signal) {
    const start = performance.now();
    let first = null, usage = null, reason = "";
    const calls = new Map();
    try {
      const answer = await call("v1/chat/completions", { method: "POST", body: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
      await events(answer, (_, data) => {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        usage = chunk.usage ?? usage;
        const choice = chunk.choices?.[0];
        if (!choice) return;
        first ??= performance.now() - start;
        this.text.append(choice.delta?.content ?? "");
        this.thought.append(choice.delta?.reasoning_content ?? "");
        for (const part of choice.delta?.tool_calls ?? []) {
          const known = calls.get(part.index) ?? { name: "", text: "" };
          calls.set(part.index, { name: known.name + (part.function?.name ?? ""), text: known.text + (part.function?.arguments ?? "") });
        }
        reason = choice.finish_reason ?? reason;
      });
    } catch (error) {
      this.facts.textContent = error.name === "AbortError" ? "stopped" : error.message;
      this.facts.className = error.name === "AbortError" ? "soft" : "bad";
      return null;
    }
    this.calls.replaceChildren(...[...calls.values()].map((one) => el("pre", {}, `${one.name}(${one.text})`)));
    const whole = (performance.now() - start) / 1000, tokens = usage?.completion_tokens ?? 0;
    const speed = tokens > 1 && first !== null && whole - first / 1000 > 0.02 ? `, ${((tokens - 1) / (whole - first / 1000)).toFixed(0)} tokens/s` : "";
    this.facts.textContent = `first token ${seconds((first ?? 0) / 1000)}, ${usage?.prompt_tokens ?? "?"} + ${tokens} tokens in ${seconds(whole)}${speed}, ended: ${reason || "?"}`;
    return this.text.textContent;
  }
}
