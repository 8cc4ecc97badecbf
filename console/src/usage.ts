// The page Usage: what the server's accounts say, of everybody for administrators; shown where the server keeps accounts.
import { call } from "./api";
import { el, table } from "./dom";
import { Page } from "./page";

const WAYS = ["client,adapter", "client", "adapter", "day", "client,day"];

type Budget = { client: string; used_tokens: number; tokens: number | null; used_cost: string | null; cost: string | null; renews: string; is_spent: boolean; over_budget: string };

/** What is used of this month's budgets; nothing where nobody has one. */
function budgets(all: Budget[]): Node[] {
  if (!all.length) return [];
  const part = (used: string | number | null, most: string | number | null) => (most === null ? "–" : `${Number(used).toLocaleString("en")} of ${Number(most).toLocaleString("en")} (${Math.floor((100 * Number(used)) / Number(most))} %)`);
  const rows = all.map((one) => [one.client, part(one.used_tokens, one.tokens), part(one.used_cost, one.cost), one.is_spent ? (one.over_budget === "slow" ? "spent: its weight has fallen" : "spent: requests are refused") : "open", one.renews.slice(0, 10)]);
  return [table(["client", "tokens", "money", "state", "renews"], rows, "Budgets of this month")];
}

/** `client`: whose key it is; null: an administrator's. */
export function usage(client: string | null): Page {
  const box = el("section", { class: "card" }, "reading …");
  const choice = (name: string, values: [string, string][]) => el("label", {}, name, " ", el("select", { change: () => read() }, ...values.map(([value, text]) => el("option", { value }, text))));
  const days = choice("Since", [["7", "7 days ago"], ["1", "yesterday"], ["30", "30 days ago"]]), by = choice("By", WAYS.map((way) => [way, way]));
  const chosen = (label: HTMLElement) => label.querySelector("select")!.value;
  const read = () => {
    const since = new Date(Date.now() - 864e5 * Number(chosen(days))).toISOString().slice(0, 10);
    const path = client === null ? "v1/admin/usage" : "v1/usage";
    void call(`${path}?since=${since}&by=${encodeURIComponent(chosen(by))}&limit=500`).then(async (answer) => {
      const told = await answer.json(), rows: Record<string, string | number>[] = told.data, heads = rows.length ? Object.keys(rows[0]) : [];
      const words = (head: string) => head.replace("mean_", "mean ").replace(/_s$/, ", s").replaceAll("_", " ");
      box.replaceChildren(...budgets(told.budgets ?? []), rows.length ? table(heads.map(words), rows.map((row) => heads.map((head) => (row[head] === "" ? "–" : row[head]))), "Usage since " + since)
        : el("p", { class: "dim" }, "Nothing was used since " + since + "."));
    }).catch((error) => { box.textContent = String(error.message); });
  };
  read();
  return { node: el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Usage"), days, by), box) };
}
