// The page Usage: what the server's accounts say, of everybody for administrators; shown where the server keeps accounts.
import { call } from "./api";
import { el, table } from "./dom";
import { Page } from "./page";

const WAYS = ["client,adapter", "client", "adapter", "day", "client,day"];

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
      const rows: Record<string, string | number>[] = (await answer.json()).data, heads = rows.length ? Object.keys(rows[0]) : [];
      const words = (head: string) => head.replace("mean_", "mean ").replace(/_s$/, ", s").replaceAll("_", " ");
      box.replaceChildren(rows.length ? table(heads.map(words), rows.map((row) => heads.map((head) => (row[head] === "" ? "–" : row[head]))), "Usage since " + since)
        : el("p", { class: "dim" }, "Nothing was used since " + since + "."));
    }).catch((error) => { box.textContent = String(error.message); });
  };
  read();
  return { node: el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Usage"), days, by), box) };
}
