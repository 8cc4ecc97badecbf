// The page Adapters: where each one is; administrators load, pin and forget them.

import { bytes, el, number, say, table } from "./dom.js";
import { call, json } from "./session.js";

export class Adapters {
  constructor(who) {
    this.isAdmin = who.is_admin;
    this.all = [];
    this.search = el("input", { type: "search", "aria-label": "Search adapters", placeholder: "Search by name or module", oninput: () => this.draw() });
    this.count = el("span", { class: "soft", role: "status" });
    this.list = el("div", { class: "card" });
    this.node = el("div", {}, el("div", { class: "bar" }, this.search, this.count, el("span", { class: "spring" }),
      el("button", { type: "button", onclick: () => this.shown() }, "Refresh")), this.isAdmin ? this.form() : null, this.list);
  }

  form() {
    const name = el("input", { required: true, id: "adapter-name" }), path = el("input", { required: true, id: "adapter-path", size: "40" });
    const pinned = el("input", { type: "checkbox" });
    const form = el("form", { class: "row card" }, el("label", {}, "Name", name), el("label", {}, "Folder on the server", path),
      el("label", { class: "check" }, pinned, "pin"), el("button", { type: "submit", class: "main" }, "Load"));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const body = { lora_name: name.value.trim(), lora_path: path.value.trim(), pinned: pinned.checked };
      if (await this.change("v1/load_lora_adapter", { method: "POST", body })) form.reset();
    });
    return form;
  }

  async change(path, options) {
    say("");
    try {
      await call(path, options);
    } catch (error) {
      say(error.message);
      return false;
    } finally {
      document.activeElement?.blur();
      await this.shown();
    }
    return true;
  }

  // States change by themselves: what is pinned is loaded a moment later. Not while somebody is about to press a button here.
  take(steps, isShown) {
    this.age = (this.age ?? 0) + 1;
    if (isShown && this.age >= 3 && this.all.length <= 2000 && !this.list.contains(document.activeElement)) this.shown();
  }

  async shown() {
    this.age = 0;
    try {
      if (this.isAdmin) {
        const answer = await json("v1/adapters");
        this.all = answer.data ?? answer.adapters ?? [];
        this.passedOver = answer.passed_over ?? [];
      } else {
        this.all = (await json("v1/models")).data.filter((model) => model.parent).map((model) => ({ name: model.id }));
      }
    } catch (error) {
      say(error.message);
    }
    this.draw();
  }

  draw() {
    const words = this.search.value.trim().toLowerCase();
    const chosen = this.all.filter((one) => !words || `${one.name} ${(one.target_modules ?? []).join(" ")} ${one.state ?? ""}`.toLowerCase().includes(words));
    this.count.textContent = `${chosen.length} of ${this.all.length} adapters${chosen.length > 200 ? ", the first 200 shown" : ""}`;
    const rows = chosen.slice(0, 200).map((one) => (this.isAdmin ? this.row(one) : [one.name]));
    const headers = this.isAdmin ? ["name", "state", number("rank"), number("size"), number("pages"), number("loads"), number("requests"), "modules", ""] : ["name"];
    const more = (this.passedOver ?? []).map((one) => el("li", {}, `${one.name}: ${one.reason}`));
    this.list.replaceChildren(table("Adapters that this server serves", headers, rows),
      ...(more.length ? [el("h2", {}, "Passed over"), el("ul", {}, ...more)] : []));
  }

  row(one) {
    const path = `v1/adapters/${one.name.split("/").map(encodeURIComponent).join("/")}`;
    const button = (text, run, kind = "") => el("button", { type: "button", class: kind, "aria-label": `${text} ${one.name}`, onclick: run }, text);
    const forget = (purge) => {
      if (confirm(`${purge ? "Forget and delete the converted rows of" : "Forget"} ${one.name}? Running requests end with it.`))
        this.change(`${path}${purge ? "?purge=true" : ""}`, { method: "DELETE" });
    };
    const actions = el("div", { class: "actions" },
      one.pinned ? button("Unpin", () => this.change(`${path}/unpin`, { method: "POST" })) : button("Pin", () => this.change(`${path}/pin`, { method: "POST" })),
      button("Unload", () => forget(false)), button("Purge", () => forget(true), "danger"));
    const name = el("span", {}, one.name, one.warning ? el("div", { class: "warn soft" }, one.warning) : null);
    const state = el("span", { class: `state ${one.state}` }, one.pinned ? `${one.state}, pinned` : one.state);
    return [name, state, String(one.rank), bytes(one.bytes), String(one.num_pages), String(one.num_loads), String(one.in_flight), (one.target_modules ?? []).join(", "), actions];
  }
}
