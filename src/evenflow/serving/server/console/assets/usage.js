// The page Usage: what was used in the last days, where the server keeps accounts.

import { el, number, say, short, table } from "./dom.js";
import { json } from "./session.js";

const route = (isAdmin) => (isAdmin ? "v1/admin/usage" : "v1/usage");

export class Usage {
  constructor(who) {
    this.who = who;
    this.days = el("select", { onchange: () => this.shown() }, ...[[1, "one day"], [7, "7 days"], [30, "30 days"]].map(([days, text]) => el("option", { value: days, selected: days === 7 }, text)));
    this.by = el("select", { onchange: () => this.shown() }, ...["client,adapter", "client", "adapter", "day", "client,day"].map((by) => el("option", { value: by }, by)));
    this.card = el("div", { class: "card" });
    this.node = el("div", {}, el("div", { class: "bar" }, el("label", {}, "Since", this.days), el("label", {}, "By", this.by)), this.card);
  }

  async shown() {
    const since = new Date(Date.now() - 864e5 * Number(this.days.value)).toISOString().slice(0, 10);
    try {
      const { data } = await json(`${route(this.who.is_admin)}?since=${since}&by=${encodeURIComponent(this.by.value)}`);
      const names = data.length ? Object.keys(data[0]) : [];
      const isNumber = (name) => data.some((row) => typeof row[name] === "number");
      const rows = data.slice(0, 500).map((row) => names.map((name) => (typeof row[name] === "number" ? short(row[name]) : String(row[name] ?? "–"))));
      this.card.replaceChildren(data.length ? table(`Usage since ${since}`, names.map((name) => (isNumber(name) ? number(name.replaceAll("_", " ")) : name)), rows)
        : el("p", { class: "soft" }, `Nothing was used since ${since}.`));
    } catch (error) {
      say(error.message);
    }
  }
}
