// The page Live: who is served, what waits, how soon first tokens come, and what the arena holds.

import { Chart, Shares } from "./charts.js";
import { bytes, el, percent, seconds, short } from "./dom.js";

const COLORS = 12;

export class Live {
  constructor() {
    this.window = 300;
    this.zoomed = null;
    this.isPaused = false;
    this.colors = new Map();
    this.tiles = el("div", { class: "tiles" });
    const onZoom = (range) => { this.zoomed = range; this.draw(); };
    const chart = (title, options = {}) => new Chart(title, { onZoom, ...options });
    this.charts = {
      service: chart("Cumulative service", { hint: "What the policy charged each client since the window began." }),
      counters: chart("Virtual counters", { hint: "Service over weight, as the policy keeps it; who is lowest goes first." }),
      waiting: chart("Waiting requests", { isStacked: true }),
      running: chart("Running requests", { isStacked: true }),
      first: chart("Time to first token, 99th percentile", { unit: seconds, hint: "Of the requests that had theirs within each second." }),
      tokens: chart("Tokens per second"),
      pages: chart("The arena, pages by owner", { isStacked: true, unit: (value) => short(Math.round(value ?? 0)) }),
      adapters: chart("Adapters in the arena and in main memory"),
      traffic: chart("Adapter traffic", { unit: (value) => `${bytes(Math.round(value ?? 0))}/s` }),
      refused: chart("Turned away", { hint: "Rejected by limits or a full queue, and shed because the first token would have come too late." }),
    };
    this.shares = new Shares("Share against weight", "The grey mark is what the weight entitles to among the clients served here. Who asks for less leaves the rest to the others.");
    this.buttons = [[60, "1 min"], [300, "5 min"], [900, "15 min"]].map(([span, text]) =>
      el("button", { type: "button", "aria-pressed": String(span === this.window), onclick: () => this.choose(span) }, text));
    this.pause = el("button", { type: "button", "aria-pressed": "false", onclick: () => this.togglePause() }, "Pause");
    this.reset = el("button", { type: "button", hidden: true, onclick: () => onZoom(null) }, "Zoom out");
    this.state = el("span", { class: "soft" });
    this.grid = el("div", { class: "grid" });
    this.node = el("div", {}, el("div", { class: "bar" }, ...this.buttons, this.pause, this.reset, el("span", { class: "spring" }), this.state),
      this.tiles, this.grid);
  }

  choose(span) {
    this.window = span;
    this.zoomed = null;
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String([60, 300, 900][i] === span)));
    this.draw();
  }

  togglePause() {
    this.isPaused = !this.isPaused;
    this.pause.setAttribute("aria-pressed", String(this.isPaused));
    this.pause.textContent = this.isPaused ? "Go on" : "Pause";
    if (!this.isPaused) this.draw();
  }

  take(steps, isShown) {
    if (this.isPaused) return;
    this.steps = steps;
    if (isShown) this.draw();
  }

  shown() {
    this.draw();
  }

  color(name) {
    if (name === "") return "kq";
    if (!this.colors.has(name)) this.colors.set(name, this.colors.size % COLORS);
    return `k${this.colors.get(name)}`;
  }

  draw() {
    const all = this.steps ?? [];
    if (!all.length) return;
    // By number and not by the clock of the server, which may jump: steps are a second apart.
    const [from, to] = this.zoomed ?? [this.window, 0];
    const steps = all.slice(Math.max(0, all.length - 1 - Math.round(from)), all.length - Math.round(to));
    const ages = steps.map((_, i) => steps.length - 1 - i + Math.round(to));
    this.reset.hidden = this.zoomed === null;
    const last = steps.at(-1), isWhole = Boolean(last.pages);
    const names = [...new Set(steps.flatMap((step) => [...step.byName.keys()]))]
      .sort((a, b) => (b === "" ? -1 : 0) - (a === "" ? -1 : 0) || (last.byName.get(b)?.service ?? 0) - (last.byName.get(a)?.service ?? 0)).slice(0, 13);
    const lines = (value, keep = () => true) => names.filter(keep).map((name) => ({
      name: name || `${last.byName.get("")?.count ?? ""} others`, color: this.color(name),
      values: steps.map((step) => (step.byName.has(name) ? value(step.byName.get(name)) : null)) }));
    const start = new Map(names.map((name) => [name, steps.find((step) => step.byName.has(name))?.byName.get(name).service ?? 0]));
    this.charts.service.show(ages, names.map((name) => ({ name: name || "others", color: this.color(name),
      values: steps.map((step) => (step.byName.has(name) ? Math.max(0, step.byName.get(name).service - start.get(name)) : null)) })));
    this.charts.counters.show(ages, lines((row) => row.counter, (name) => name !== ""));
    this.charts.waiting.show(ages, lines((row) => row.waiting));
    this.charts.running.show(ages, lines((row) => row.running));
    this.charts.first.show(ages, lines((row) => row.first[2] ?? null));
    this.showShares(names, steps, start);
    const series = (name, color, value) => ({ name, color, values: steps.map(value) });
    const rate = (value) => steps.map((step, i) => (i ? Math.max(0, value(step) - value(steps[i - 1])) : null));
    const wanted = [this.charts.service, this.shares, this.charts.first, this.charts.waiting, this.charts.running, this.charts.counters];
    if (isWhole) {
      this.charts.tokens.show(ages, [series("output", "k0", (step) => step.tokens_per_s ?? 0), series("prompt", "k1", (step) => step.prompt_tokens_per_s ?? 0)]);
      this.charts.pages.show(ages, [series("keys and values", "k0", (step) => step.pages?.kv), series("prefixes", "k5", (step) => step.pages?.prefixes),
        series("adapters", "k1", (step) => step.pages?.adapters), series("free", "kn", (step) => step.pages?.free)]);
      this.charts.adapters.show(ages, [series("in the arena", "k1", (step) => step.num_resident ?? 0), series("in main memory", "k5", (step) => step.num_host ?? 0)]);
      this.charts.traffic.show(ages, [{ name: "loaded", color: "k1", values: rate((step) => step.loaded_bytes ?? 0) }]);
      this.charts.refused.show(ages, [{ name: "rejected", color: "k6", values: rate((step) => step.num_rejected ?? 0) },
        { name: "shed", color: "k4", values: rate((step) => step.num_shed ?? 0) }]);
      wanted.push(this.charts.tokens, this.charts.pages, this.charts.adapters, this.charts.traffic, this.charts.refused);
    }
    if (this.grid.childElementCount !== wanted.length) this.grid.replaceChildren(...wanted.map((one) => one.node));
    this.showTiles(last, steps, isWhole);
  }

  showShares(names, steps, start) {
    const last = steps.at(-1);
    const gained = names.map((name) => ({ name, got: Math.max(0, (last.byName.get(name)?.service ?? 0) - start.get(name)), weight: last.byName.get(name)?.weight }))
      .filter((row) => row.got > 0);
    const got = gained.reduce((sum, row) => sum + row.got, 0), weights = gained.reduce((sum, row) => sum + (row.weight ?? 0), 0);
    const isWhole = gained.every((row) => row.name !== "");
    this.shares.show(gained.map((row) => ({ name: row.name || "others", color: this.color(row.name), share: row.got / got,
      due: isWhole && weights ? row.weight / weights : null })));
  }

  showTiles(last, steps, isWhole) {
    const firsts = steps.slice(-10).flatMap((step) => step.rows.flatMap((row) => (row.first.length ? [row.first[1]] : []))).sort((a, b) => a - b);
    const median = firsts.length ? firsts[Math.floor(firsts.length / 2)] : null;
    const total = last.pages ? last.pages.free + last.pages.kv + last.pages.prefixes + last.pages.adapters : 0;
    const tiles = [["running", short(last.num_running ?? 0)], ["waiting", short(last.num_waiting ?? 0)], ["first token, median of 10 s", seconds(median)]];
    if (isWhole) tiles.push(["output tokens/s", short(last.tokens_per_s ?? 0)], ["prompt tokens/s", short(last.prompt_tokens_per_s ?? 0)],
      ["arena in use", total ? percent(1 - last.pages.free / total) : "–"], ["adapters in the arena", `${last.num_resident ?? 0} / ${last.num_adapters ?? 0}`]);
    tiles.push(["turned away", short((last.num_rejected ?? 0) + (last.num_shed ?? 0))]);
    this.tiles.replaceChildren(...tiles.map(([name, value]) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name))));
    this.state.textContent = last.policy ? `policy ${last.policy}${last.is_draining ? ", draining" : ""}` : "";
  }
}
