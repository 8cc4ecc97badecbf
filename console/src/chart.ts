// One chart over time: lines by name, zoom by dragging, and the same figures as a table.
import uPlot from "uplot";
import { el, short, table } from "./dom";

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const colour = (index: number) => css("--c" + (index % 8));
const seen = new Map<string, number>();
/** A client keeps its colour, whatever its place among the others. */
export function colourOf(name: string): string {
  if (!seen.has(name) && seen.size < 1000) seen.set(name, seen.size);
  return colour(seen.get(name) ?? 7);
}
const clock = (t: number) => new Date(t * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export class Chart {
  readonly node: HTMLElement;
  private readonly box = el("div", { class: "plot", role: "img" });
  private readonly words = el("div");
  private readonly details = el("details", { toggle: () => this.tell() }, el("summary", {}, "As a table"), this.words);
  private plot: uPlot | null = null;
  private names: string[] = [];
  private data: (number | null)[][] = [[]];
  private zoomed = false;
  private readonly sizes = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height: 180 }));

  constructor(readonly title: string, private readonly unit = "", private readonly isByClient = false) {
    this.box.setAttribute("aria-label", title + ", lines over time; the table below has the figures");
    this.node = el("section", { class: "card" }, el("h2", {}, title, el("small", {}, unit)), this.box, this.details);
    this.sizes.observe(this.box);
  }

  show(times: number[], series: [string, (number | null)[]][]): void {
    const names = series.map(([name]) => name);
    this.data = [times, ...series.map(([, values]) => values)];
    if (!this.plot || names.join("\0") !== this.names.join("\0")) { this.names = names; this.make(); }
    else this.plot.setData(this.data as uPlot.AlignedData, !this.zoomed);
    if (this.details.open) this.tell();
  }

  make(): void {
    this.plot?.destroy();
    this.zoomed = false;
    if (!this.box.clientWidth) { this.plot = null; return; }
    const axis = { stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    this.plot = new uPlot({
      width: this.box.clientWidth, height: 180, padding: [8, 8, 0, 0], cursor: { points: { size: 6 }, drag: { x: true, y: false } },
      legend: { live: true, markers: { width: 2 } },
      scales: { y: { range: (_u, _least, most) => [0, most > 0 ? most * 1.08 : 1] } },
      series: [{ value: (_u, v) => (v === null ? "–" : clock(v)) }, ...this.names.map((label, index) => ({
        label: label.length > 28 ? label.slice(0, 27) + "…" : label, stroke: this.isByClient ? colourOf(label) : colour(index), width: 1.5, points: { show: false }, value: (_u: uPlot, v: number | null) => short(v) }))],
      axes: [{ ...axis, space: 80, values: (_u, ticks) => ticks.map(clock) }, { ...axis, size: 48, values: (_u, ticks) => ticks.map((tick) => short(tick)) }],
      hooks: { setSelect: [(u) => { this.zoomed = u.select.width > 0; }] },
    }, this.data as uPlot.AlignedData, this.box);
    this.plot.over.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  destroy(): void { this.sizes.disconnect(); this.plot?.destroy(); }

  private tell(): void {
    const rows = this.names.map((name, index) => {
      const values = this.data[index + 1].filter((value): value is number => value !== null);
      const sum = values.reduce((a, b) => a + b, 0);
      return [name, short(values.at(-1)), short(values.length ? sum / values.length : null), short(values.length ? values.reduce((a, b) => Math.max(a, b)) : null)];
    });
    this.words.replaceChildren(table(["Line", "Now", "Mean", "Most"], rows, this.title + " " + this.unit));
  }
}
