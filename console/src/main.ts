// The console: who is signed in, which page is open, and the steps that all pages draw from.
import { adapters } from "./adapters";
import { follow, Hello, key, setKey, Step } from "./api";
import { clients } from "./clients";
import { el } from "./dom";
import { live } from "./live";
import { Page } from "./page";
import { playground } from "./playground";
import { usage } from "./usage";
import "uplot/dist/uPlot.min.css";
import "./console.css";

const MOST_STEPS = 900;
const at = (id: string) => document.getElementById(id)!;
const steps: Step[] = [];
let hello: Hello | null = null, page: Page | null = null, following: AbortController | null = null, catchingUp = true;

const pages: Record<string, () => Page> = { live: () => live(steps), adapters: () => adapters(), clients: () => clients(steps), playground: () => playground(hello!.model), usage: () => usage(hello!.client) };

function open(): void {
  if (!hello) return;
  const wanted = location.hash.slice(1), name = wanted in pages ? wanted : "live";
  page?.leave?.();
  page = pages[name]();
  at("main").replaceChildren(page.node);
  document.title = name[0].toUpperCase() + name.slice(1) + " – EvenFlow console";
  const shown = Object.keys(pages).filter((other) => (other !== "adapters" || hello!.client === null) && (other !== "usage" || hello!.has_usage));
  at("nav").replaceChildren(...shown.map((other) => el("a", { href: "#" + other, ...(other === name ? { "aria-current": "page" } : {}) }, other[0].toUpperCase() + other.slice(1))));
  page.step?.();
}

function ask(message: string): void {
  following?.abort(); page?.leave?.(); page = null; hello = null; steps.length = 0; setKey("");
  at("nav").replaceChildren(); at("who").textContent = ""; at("out").hidden = true; at("link").textContent = "signed out"; at("link").className = "pill";
  const input = el("input", { type: "password", required: true, autocomplete: "off", "aria-label": "API key", placeholder: "API key" });
  at("main").replaceChildren(el("form", { class: "card sign", submit: (event: Event) => { event.preventDefault(); setKey(input.value.trim()); start(); } }, el("h1", {}, "Sign in"), el("p", { role: "alert", class: message ? "bad" : "" }, message),
    el("p", { class: "dim" }, "The key is kept in this tab until it is closed. An administrator's key shows everything, a client's key its own figures."), input, el("button", { class: "main" }, "Sign in")));
  input.focus();
}

function start(): void {
  following?.abort();
  following = new AbortController();
  void follow({
    hello(told) {
      const isNew = !hello || hello.client !== told.client || hello.started !== told.started;
      hello = told; steps.length = 0; catchingUp = true;
      at("who").textContent = `${told.model}, ${told.client ?? (told.needs_key ? "administrator" : "open server")}`;
      at("out").hidden = !key();
      if (isNew && !(page && location.hash === "#playground")) open();
    },
    step(step) {
      steps.push(step);
      if (steps.length > MOST_STEPS) steps.splice(0, steps.length - MOST_STEPS);
      if (!catchingUp && !document.hidden) page?.step?.();
    },
    live() { catchingUp = false; page?.step?.(); },
    link(state) { at("link").textContent = state; at("link").className = "pill " + (state === "live" ? "good" : "warn"); },
    refused(message) { ask(key() ? message : ""); },
  }, following.signal);
}

at("out").addEventListener("click", () => ask(""));
// Its address is a page's place in the address bar: following it would leave the page that is open.
document.querySelector(".skip")!.addEventListener("click", (event) => { event.preventDefault(); at("main").focus(); });
window.addEventListener("hashchange", () => { open(); at("main").focus(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page?.theme?.());
start();
