// Lines and areas over the last minutes, in SVG, with a cursor, a zoom by dragging, and the same values as a table.

import { el, number, short, svg, table } from "./dom.js";

const HEIGHT = 200, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 20;

// series: [{ name, color (class k0 ... k11, kq), values: [number or null] }], beside `ages`, seconds before now, oldest first.
export class Chart {
  constructor(title, { unit = short, isStacked = false, hint = "", onZoom = () => {} } = {}) {
    this.unit = unit;
    this.isStacked = isStacked;
    this.onZoom = onZoom;
    this.plot = svg("svg", { class: "chart", role: "img", "aria-label": `${title}; the values are in the table below` });
    this.legend = el("p", { class: "legend" });
    this.values = el("details", { class: "values" }, el("summary", {}, "Values"));
    this.values.addEventListener("toggle", () => this.tabulate());
    this.title = title;
    this.node = el("section", { class: "card" }, el("h2", {}, title), hint ? el("p", { class: "soft" }, hint) : null, this.plot, this.legend, this.values);
    this.data = { ages: [], series: [] };
    this.cursor = null;
    this.plot.addEventListener("pointermove", (event) => this.move(event));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("pointerdown", (event) => { this.from = this.ageAt(event); });
    this.plot.addEventListener("pointerup", (event) => this.release(event));
    this.plot.addEventListener("dblclick", () => this.onZoom(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show(ages, series) {
    this.data = { ages, series };
    this.draw();
    if (this.values.open) this.tabulate();
  }

  draw() {
    const { ages, series } = this.data, width = this.plot.clientWidth;
    if (!width) return;
    this.width = width;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const heights = this.isStacked ? stacked(series) : series.map((one) => one.values.map((value) => [0, value]));
    let most = 0;
    for (const one of heights) for (const [, high] of one) if (high > most) most = high;
    this.most = nice(most || 1);
    const parts = [];
    for (let i = 0; i <= 4; i += 1) {
      const y = this.y((this.most * i) / 4);
      parts.push(svg("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        svg("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, this.unit((this.most * i) / 4)));
    }
    this.range = ages.length ? [ages[0], ages.at(-1)] : [60, 0];
    for (const share of [0, 0.5, 1]) {
      const age = this.range[0] + share * (this.range[1] - this.range[0]);
      parts.push(svg("text", { x: this.x(age), y: HEIGHT - 4, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, ago(age)));
    }
    series.forEach((one, i) => parts.push(this.path(one, heights[i])));
    if (this.cursor !== null && ages.length) {
      const x = this.x(ages[this.cursor]);
      parts.push(svg("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    if (this.from !== undefined && this.to !== undefined) {
      const [a, b] = [this.x(this.from), this.x(this.to)];
      parts.push(svg("rect", { class: "select", x: Math.min(a, b), width: Math.abs(a - b), y: TOP, height: HEIGHT - TOP - BOTTOM }));
    }
    this.plot.replaceChildren(...parts);
    this.explain();
  }

  path(one, heights) {
    const { ages } = this.data, commands = [];
    let isOn = false;
    if (this.isStacked) {
      const there = heights.map(([, high], i) => `${this.x(ages[i]).toFixed(1)},${this.y(high).toFixed(1)}`);
      const back = heights.map(([low], i) => `${this.x(ages[i]).toFixed(1)},${this.y(low).toFixed(1)}`).reverse();
      return svg("path", { class: `area ${one.color}`, d: there.length ? `M${there.join("L")}L${back.join("L")}Z` : "" });
    }
    heights.forEach(([, value], i) => {
      if (value === null || value === undefined) { isOn = false; return; }
      const point = `${this.x(ages[i]).toFixed(1)},${this.y(value).toFixed(1)}`;
      commands.push(isOn ? `L${point}` : `M${point}h.01`);
      isOn = true;
    });
    return svg("path", { class: `stroke ${one.color}`, d: commands.join("") });
  }

  x(age) {
    const [oldest, newest] = this.range, span = oldest - newest || 1;
    return LEFT + ((oldest - age) / span) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return HEIGHT - BOTTOM - (Math.min(value, this.most) / this.most) * (HEIGHT - TOP - BOTTOM);
  }

  ageAt(event) {
    const box = this.plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)));
    return this.range[0] + share * (this.range[1] - this.range[0]);
  }

  move(event) {
    const { ages } = this.data;
    if (!ages.length) return;
    const age = this.ageAt(event);
    this.cursor = ages.reduce((best, one, i) => (Math.abs(one - age) < Math.abs(ages[best] - age) ? i : best), 0);
    if (this.from !== undefined) this.to = age;
    this.draw();
  }

  leave() {
    this.cursor = null;
    this.from = this.to = undefined;
    this.draw();
  }

  release() {
    if (this.from !== undefined && this.to !== undefined && Math.abs(this.from - this.to) > 4)
      this.onZoom([Math.max(this.from, this.to), Math.min(this.from, this.to)]);
    this.from = this.to = undefined;
  }

  explain() {
    const { ages, series } = this.data;
    const at = this.cursor ?? ages.length - 1;
    const when = this.cursor === null || !ages.length ? [] : [el("span", { class: "soft" }, ago(ages[this.cursor]))];
    this.legend.replaceChildren(...when, ...series.map((one) =>
      el("span", {}, el("i", { class: one.color, "aria-hidden": "true" }), `${one.name} ${this.unit(one.values[at] ?? null)}`)));
  }

  tabulate() {
    const { ages, series } = this.data;
    const chosen = ages.map((_, i) => i).filter((i) => (ages.length - 1 - i) % Math.max(1, Math.ceil(ages.length / 12)) === 0);
    const rows = chosen.reverse().map((i) => [ago(ages[i]), ...series.map((one) => this.unit(one.values[i] ?? null))]);
    this.values.replaceChildren(this.values.firstChild, table(this.title, ["when", ...series.map((one) => number(one.name))], rows));
  }
}

function stacked(series) {
  const sums = new Array(series[0]?.values.length ?? 0).fill(0);
  return series.map((one) => one.values.map((value, i) => [sums[i], (sums[i] += value ?? 0)]));
}

function nice(most) {
  const unit = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 4, 5, 8, 10].map((step) => step * unit).find((step) => step >= most * 1.02) ?? 10 * unit;
}

export function ago(age) {
  const whole = Math.round(age);
  if (whole <= 0) return "now";
  return whole < 60 ? `${whole} s ago` : `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min ago`;
}

// Two bars for each of a few names: what it got, and what its weight entitles it to.
export class Shares {
  constructor(title, hint) {
    this.body = el("div", {});
    this.node = el("section", { class: "card" }, el("h2", {}, title), el("p", { class: "soft" }, hint), this.body);
  }

  show(rows) {
    if (!rows.length) {
      this.body.replaceChildren(el("p", { class: "soft" }, "Nobody was served in this window."));
      return;
    }
    const made = rows.map(({ name, color, share, due }) => {
      const bars = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", width: "100%", height: "12", "aria-hidden": "true" },
        svg("rect", { class: "fill kn", x: 0, y: 2, width: 100, height: 4 }), svg("rect", { class: `fill ${color}`, x: 0, y: 1, width: 100 * share, height: 6 }));
      if (due !== null) bars.append(svg("rect", { class: "fill kq", x: Math.min(99.2, 100 * due), y: 0, width: 0.8, height: 8 }));
      const words = `${(100 * share).toFixed(1)} %`;
      return [el("span", {}, el("i", { class: `${color} dot`, "aria-hidden": "true" }), name), words, due === null ? "–" : `${(100 * due).toFixed(1)} %`, bars];
    });
    this.body.replaceChildren(table("Share of the service in this window, and by weight among those who were served",
      ["client", number("share"), number("by weight"), ""], made));
  }
}
