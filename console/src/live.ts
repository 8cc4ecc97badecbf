// The page Live: who is served, what waits, what is in memory.
import { Row, Step } from "./api";
import { Chart, colourOf } from "./chart";
import { el, short, table } from "./dom";
import { Page } from "./page";

const MOST_LINES = 8;
const OWNERS: [string, string][] = [["kv", "KV cache"], ["prefixes", "Cached prefixes"], ["adapters", "Adapters"], ["free", "Free"]];

export function live(steps: Step[]): Page {
  const charts = {
    service: new Chart("Cumulative service", "by client", true), counters: new Chart("Virtual counters", "by client", true),
    tokens: new Chart("Tokens", "per second"), ttft: new Chart("First token", "seconds"), queue: new Chart("Requests", "waiting, running"),
    arena: new Chart("Arena over time", "pages"), adapters: new Chart("Adapter traffic", "per second"), refused: new Chart("Shed and rejected", "per second"),
  };
  const tiles = el("div", { class: "tiles" });
  const shares = el("div"), arena = el("div");
  let paused = false;
  const pause = el("button", { "aria-pressed": "false", click: () => { paused = !paused; pause.textContent = paused ? "Resume" : "Pause"; pause.setAttribute("aria-pressed", String(paused)); draw(); } }, "Pause");
  const span = el("select", { "aria-label": "Shown time", change: () => draw(true) }, ...[["15", "15 minutes"], ["5", "5 minutes"], ["1", "1 minute"]].map(([value, text]) => el("option", { value }, text)));
  const grid = el("div", { class: "grid" },
    el("section", { class: "card" }, el("h2", {}, "Shares of the last minute", el("small", {}, "bar: service, mark: weight")), shares),
    el("section", { class: "card" }, el("h2", {}, "Arena", el("small", {}, "pages by owner")), arena));
  const node = el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Live"), el("span", { class: "dim hint" }, "drag over a chart to zoom, double-click to go back"), span, pause), tiles, grid);
  let shown = false;

  function rate(of: (step: Step) => number | null, kept: Step[]): (number | null)[] {
    return kept.map((step, index) => {
      if (!index) return null;
      const now = of(step), before = of(kept[index - 1]), gap = step.t - kept[index - 1].t;
      return now === null || before === null || now < before || gap > 5 || gap <= 0 ? null : (now - before) / gap;
    });
  }

  function draw(force = false): void {
    const last = steps.at(-1);
    if (!last || (paused && !force)) return;
    const kept = steps.filter((step) => step.t > last.t - Number(span.value) * 60);
    const times = kept.map((step) => step.t);
    const whole = last.whole;
    if (!shown) {
      shown = true;
      const some = whole ? Object.values(charts) : [charts.service, charts.counters, charts.tokens, charts.ttft, charts.queue];
      grid.append(...some.map((chart) => chart.node));
      (arena.parentElement as HTMLElement).hidden = !whole;
    }
    const names = last.rows.slice(0, MOST_LINES).map((row) => row[0]);
    const maps = kept.map((step) => new Map(step.rows.map((row) => [row[0], row])));
    const line = (index: number): [string, (number | null)[]][] => names.map((name) => [name, maps.map((map) => (map.get(name)?.[index] as number) ?? null)]);
    charts.service.show(times, line(2));
    charts.counters.show(times, line(3));
    const own = (index: number) => (step: Step) => (step.rows[0]?.[index] as number) ?? null;
    const of = (field: string, index: number) => (step: Step) => (step.whole ? (step.whole[field] as number) : own(index)(step));
    const output = rate(of("completion_tokens", 7), kept), prompt = rate(of("prompt_tokens", 6), kept);
    charts.tokens.show(times, [["output", output], ["prompt", prompt]]);
    const ttft = kept.map((step) => (step.whole ? step.whole.ttft_s : step.rows[0]?.[10] ?? []));
    charts.ttft.show(times, [["median", ttft.map((v) => v[0] ?? null)], ["95 %", ttft.map((v) => v[1] ?? null)]]);
    charts.queue.show(times, [["waiting", kept.map(of("waiting", 4))], ["running", kept.map(of("running", 5))]]);
    const tile = (label: string, value: string) => el("div", { class: "tile" }, el("span", {}, label), el("b", {}, value));
    const lately = ttft.slice(-30).flatMap((v) => (v.length ? [v[0]] : [])).at(-1);
    tiles.replaceChildren(tile("Output tokens/s", short(output.at(-1))), tile("Running", short(of("running", 5)(last))), tile("Waiting", short(of("waiting", 4)(last))),
      tile("First token, s", short(lately)), ...(whole ? [tile("Clients", short(whole.num_clients)), tile("Adapters resident", short(whole.resident) + " of " + short(whole.registered)),
        tile("Free pages", whole.pages ? Math.round((100 * whole.free) / whole.pages) + " %" : "–"), tile("Shed, rejected", short(whole.shed) + ", " + short(whole.rejected))] : []));
    drawShares(kept, last);
    if (whole) {
      drawArena(whole);
      charts.arena.show(times, OWNERS.map(([field, label]) => [label, kept.map((step) => (step.whole ? step.whole[field] as number : null))]));
      const w = (field: string) => rate((step) => (step.whole ? (step.whole[field] as number) : null), kept);
      charts.adapters.show(times, [["loads", w("loads")], ["evictions", w("evictions")], ["MB loaded", w("loaded_bytes").map((v) => (v === null ? v : v / 1e6))]]);
      charts.refused.show(times, [["shed", w("shed")], ["rejected", w("rejected")], ["preempted", w("preempted")]]);
    }
  }

  function drawShares(kept: Step[], last: Step): void {
    const first = kept.find((step) => step.t > last.t - 60) ?? last;
    const before = new Map([...first.rows, ...(first.whole?.others ? [first.whole.others] : [])].map((row) => [row[0], row]));
    const rows: Row[] = [...last.rows, ...(last.whole?.others ? [last.whole.others] : [])];
    const gained = rows.map((row) => Math.max(0, row[2] - (before.get(row[0])?.[2] ?? row[2])));
    const total = gained.reduce((a, b) => a + b, 0), active = rows.filter((row, i) => gained[i] > 0 || row[4] + row[5] > 0);
    const weights = active.reduce((a, row) => a + row[1], 0);
    const cells = rows.map((row, index) => {
      const share = total ? gained[index] / total : 0, due = active.includes(row) && weights ? row[1] / weights : 0;
      const bar = el("span", { class: "share" }), fill = el("i"), mark = el("em");
      fill.style.width = 100 * share + "%"; fill.style.background = colourOf(row[0]); mark.style.left = 100 * due + "%";
      bar.append(fill, mark);
      return [row[0] || "others", row[1], el("span", { class: "pair" }, bar, Math.round(100 * share) + " %"), short(row[3]), row[4], row[5]];
    });
    shares.replaceChildren(table(["Client", "Weight", "Share", "Counter", "Waits", "Runs"], cells, "Shares of service by client"));
  }

  function drawArena(whole: Record<string, any>): void {
    const cells = 240, box = el("div", { class: "pages", role: "img", "aria-label": OWNERS.map(([field, label]) => `${label}: ${whole[field]} pages`).join(", ") });
    let sum = 0, drawn = 0;
    OWNERS.forEach(([field]) => {
      sum += whole[field];
      const end = Math.max(drawn + (whole[field] > 0 ? 1 : 0), Math.round((cells * sum) / Math.max(1, whole.pages)));
      for (; drawn < Math.min(end, cells); drawn++) box.append(el("i", { class: "o-" + field }));
    });
    arena.replaceChildren(box, el("ul", { class: "legend" }, ...OWNERS.map(([field, label]) => el("li", {}, el("i", { class: "o-" + field }), `${label} `, el("b", {}, short(whole[field]))))),
      el("p", { class: "dim" }, `${short(whole.pages)} pages; adapters: ${short(whole.resident)} resident, ${short(whole.host)} on the host, ${short(whole.pinned)} pinned, ${short(whole.loads)} loads, ${short(whole.evictions)} evictions`));
  }

  return { node, step: () => draw(), theme: () => Object.values(charts).forEach((chart) => chart.make()), leave: () => Object.values(charts).forEach((chart) => chart.destroy()) };
}
