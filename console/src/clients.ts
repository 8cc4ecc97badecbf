// The page Clients: weights, limits and what each has received.
import { call, Row, Step } from "./api";
import { Chart } from "./chart";
import { el, short, table } from "./dom";
import { Page } from "./page";

interface Allowed { name: string; weight: number; requests_per_minute: number | null; tokens_per_minute: number | null; max_queued_requests: number | null; adapters: string[] | null; }

export function clients(steps: Step[]): Page {
  const now = el("div"), limits = el("div");
  const choice = el("select", { "aria-label": "Client of the history", change: () => draw() });
  const history = new Chart("History", "output tokens per second, waiting, running");
  const node = el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Clients")), el("section", { class: "card" }, el("h2", {}, "Now"), now),
    el("div", { class: "bar" }, el("label", {}, "History of ", choice)), history.node, el("section", { class: "card" }, el("h2", {}, "Weights and limits of the clients file"), limits));

  function draw(): void {
    const last = steps.at(-1);
    if (!last) return;
    const rows: Row[] = [...last.rows, ...(last.whole?.others ? [last.whole.others] : [])];
    now.replaceChildren(table(["Client", "Weight", "Service", "Counter", "Waits", "Runs", "Prompt", "Output", "Cached", "Rejected"],
      rows.map((row) => [row[0] || "others", row[1], short(row[2]), short(row[3]), row[4], row[5], row[6], row[7], row[8], row[9]]), "Clients now"));
    const names = last.rows.map((row) => row[0]);
    if (names.join("\0") !== [...choice.options].map((option) => option.value).join("\0")) {
      const kept = choice.value;
      choice.replaceChildren(...names.map((value) => el("option", { value }, value)));
      if (names.includes(kept)) choice.value = kept;
    }
    const mine = steps.map((step) => step.rows.find((row) => row[0] === choice.value));
    const output = mine.map((row, i) => { const before = mine[i - 1], gap = i ? steps[i].t - steps[i - 1].t : 0; return row && before && gap > 0 && gap < 5 && row[7] >= before[7] ? (row[7] - before[7]) / gap : null; });
    history.show(steps.map((step) => step.t), [["output/s", output], ["waiting", mine.map((row) => row?.[4] ?? null)], ["running", mine.map((row) => row?.[5] ?? null)]]);
  }
  async function read(): Promise<void> {
    try {
      const told: { clients: Allowed[]; total: number } = await (await call("console/clients")).json();
      limits.replaceChildren(told.total ? table(["Client", "Weight", "Requests/min", "Tokens/min", "May wait", "Adapters"], told.clients.map((c) => [c.name, c.weight, short(c.requests_per_minute), short(c.tokens_per_minute), short(c.max_queued_requests), c.adapters?.join(", ") ?? "all"]), "Weights and limits")
        : el("p", { class: "dim" }, "No clients file names this; whoever asks has weight 1 and no limits."), ...(told.total > told.clients.length ? [el("p", { class: "dim" }, `${told.clients.length} of ${told.total} are shown`)] : []));
    } catch (error) { limits.textContent = String((error as Error).message); }
  }
  void read();
  const timer = window.setInterval(() => void read(), 10_000);
  return { node, step: draw, theme: () => history.make(), leave: () => { window.clearInterval(timer); history.destroy(); } };
}
