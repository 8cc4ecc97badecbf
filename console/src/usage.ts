// The page Usage: what GET /v1/usage says, as a table; shown where the server has that route.
import { call } from "./api";
import { el, table } from "./dom";
import { Page } from "./page";

export function usage(): Page {
  const box = el("div", {}, "reading …");
  void call("v1/usage").then(async (answer) => {
    const told = await answer.json();
    const rows: Record<string, unknown>[] = Array.isArray(told) ? told : (Object.values(told).find((value) => Array.isArray(value)) as any) ?? [told];
    const heads = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    box.replaceChildren(rows.length ? table(heads, rows.slice(0, 500).map((row) => heads.map((head) => { const v = row[head]; return typeof v === "number" ? v : v === null || v === undefined ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v); })), "Usage") : el("p", { class: "dim" }, "Nothing was used yet."));
  }).catch((error) => { box.textContent = String(error.message); });
  return { node: el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Usage")), el("section", { class: "card" }, box)) };
}
