// The page Clients: weights, limits and what each has had.

import { el, number, seconds, short, table } from "./dom.js";

export class Clients {
  constructor(who) {
    this.who = who;
    this.card = el("div", { class: "card" });
    this.node = el("div", {}, el("p", { class: "soft" }, "Weights and limits come from the clients file; the server reads it again on SIGHUP. Totals count from its start."), this.card);
  }

  take(steps, isShown) {
    this.steps = steps;
    if (isShown) this.draw();
  }

  shown() {
    this.draw();
  }

  draw() {
    const last = this.steps?.at(-1);
    if (!last) return;
    const rows = last.rows.map((row) => {
      const limits = this.who.limits[row.name] ?? {}, history = this.steps.slice(-120).flatMap((step) => step.byName.get(row.count > 1 ? "" : row.name)?.first[1] ?? []);
      const limit = (name) => (limits[name] === null || limits[name] === undefined ? "–" : short(limits[name]));
      history.sort((a, b) => a - b);
      return [row.count > 1 ? `${row.count} others` : row.name, row.weight === null ? "–" : String(row.weight), short(row.service), short(row.prompt), short(row.completion), short(row.cached),
        String(row.running), String(row.waiting), seconds(history.length ? history[Math.floor(history.length / 2)] : null), String(row.rejected),
        limit("requests_per_minute"), limit("tokens_per_minute"), limit("max_queued_requests")];
    });
    const headers = ["client", number("weight"), number("service"), number("prompt tokens"), number("output tokens"), number("cached"), number("running"), number("waiting"),
      number("first token"), number("turned away"), number("requests/min"), number("tokens/min"), number("queued")];
    this.card.replaceChildren(table("Clients by service; first token: median of the last two minutes", headers, rows));
  }
}
