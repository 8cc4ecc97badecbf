// The page Adapters: what is registered and where it lies; administrators change it.
import { call, Refusal } from "./api";
import { el, short, table } from "./dom";
import { Page } from "./page";

interface Card { name: string; rank: number; bytes: number; num_pages: number; state: string; pinned: boolean; in_flight: number; num_loads: number; warning: string | null; }
const MOST = 200;

export function adapters(): Page {
  let cards: Card[] = [], timer = 0;
  const says = el("p", { role: "status", class: "says" });
  const search = el("input", { type: "search", placeholder: "Search by name", "aria-label": "Search adapters", input: () => draw() });
  const place = el("select", { "aria-label": "State", change: () => draw() }, ...["", "resident", "host", "disk", "draining"].map((value) => el("option", { value }, value || "any state")));
  const name = el("input", { required: true, "aria-label": "Name of the adapter", placeholder: "name" });
  const path = el("input", { required: true, "aria-label": "Folder of the adapter on the server", placeholder: "folder on the server" });
  const form = el("form", { class: "bar", submit: (event: Event) => { event.preventDefault(); void act(`${name.value} is loaded`, () => call("v1/load_lora_adapter", "POST", { lora_name: name.value, lora_path: path.value })); } }, name, path, el("button", { class: "main" }, "Load"));
  const list = el("div");
  const node = el("div", {}, el("div", { class: "bar" }, el("h1", {}, "Adapters"), search, place), form, says, list);

  async function act(done: string, work: () => Promise<unknown>): Promise<void> {
    says.textContent = "working …"; says.className = "says";
    try { await work(); says.textContent = done; } catch (error) { says.textContent = String((error as Error).message); says.className = "says bad"; }
    await read();
  }

  async function read(): Promise<void> {
    try { cards = (await (await call("v1/adapters")).json()).data; draw(); } catch (error) {
      if (error instanceof Refusal && (error.status === 401 || error.status === 403)) { window.clearInterval(timer); form.hidden = true; }
      says.textContent = String((error as Error).message); says.className = "says bad";
    }
  }

  function draw(): void {
    if (list.contains(document.activeElement) && document.activeElement !== list.querySelector(".scroll")) return;
    const wanted = search.value.toLowerCase();
    const found = cards.filter((card) => card.name.toLowerCase().includes(wanted) && (!place.value || card.state === place.value));
    const rows = found.slice(0, MOST).map((card) => {
      const url = "v1/adapters/" + encodeURIComponent(card.name);
      const button = (text: string, done: string, work: () => Promise<unknown>, sure = "") => el("button", { "aria-label": `${text} ${card.name}`, click: (event: Event) => { if (!sure || confirm(sure)) { (event.target as HTMLElement).blur(); void act(done, work); } } }, text);
      return [card.name, el("span", { class: "state s-" + card.state }, card.state + (card.pinned ? ", pinned" : "")), card.rank, (card.bytes / 1e6).toFixed(2) + " MB", card.num_pages, card.in_flight, card.num_loads,
        el("span", { class: card.warning ? "bad" : "dim" }, card.warning ?? ""),
        el("span", { class: "acts" }, card.pinned ? button("Unpin", `${card.name} may be evicted again`, () => call(url + "/unpin", "POST")) : button("Pin", `${card.name} is pinned`, () => call(url + "/pin", "POST")),
          button("Unload", `${card.name} is unloaded`, () => call(url, "DELETE"), `Unload ${card.name}?`), button("Purge", `${card.name} is unloaded and its rows are deleted`, () => call(url + "?purge=true", "DELETE"), `Unload ${card.name} and delete its converted rows?`))];
    });
    list.replaceChildren(el("p", { class: "dim" }, `${short(found.length)} of ${short(cards.length)}` + (found.length > MOST ? `; the first ${MOST} are shown, search to see others` : "")),
      table(["Name", "State", "LoRA rank", "Size", "Pages", "In flight", "Loads", "Warning", ""], rows, "Adapters"));
  }
  void read();
  timer = window.setInterval(() => void read(), 3000);
  return { node, leave: () => window.clearInterval(timer) };
}
