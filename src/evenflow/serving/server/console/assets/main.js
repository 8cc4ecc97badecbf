// The console: who looks, which pages there are, and the steps that feed them.

import { Adapters } from "./adapters.js";
import { Clients } from "./clients.js";
import { el, say } from "./dom.js";
import { Feed } from "./feed.js";
import { Live } from "./live.js";
import { Playground } from "./playground.js";
import { Refused, forget, json, signIn } from "./session.js";
import { Usage } from "./usage.js";

const byId = (id) => document.getElementById(id);

async function whoLooks() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      return await json("v1/console/who");
    } catch (error) {
      if (error instanceof Refused && error.status !== 503) return signIn();
      link("away", "the server is away; trying again");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}

function link(state, text) {
  const pill = byId("link");
  pill.className = `pill ${state}`;
  pill.textContent = state === "live" ? "live" : "away";
  pill.title = text;
  if (state === "away") say(text);
  else if (byId("notice").dataset.isAway) say("");
  byId("notice").dataset.isAway = state === "away" ? "1" : "";
}

async function start() {
  const who = await whoLooks();
  byId("viewer").textContent = who.client === null ? (who.needs_key ? "administrator" : "open server") : who.client;
  byId("version").textContent = `EvenFlow ${who.version}`;
  byId("sign-out").hidden = !who.needs_key;
  const pages = new Map([["Live", new Live()], ["Adapters", new Adapters(who)], ["Clients", new Clients(who)], ["Playground", new Playground(who)]]);
  if (who.keeps_accounts) pages.set("Usage", new Usage(who));
  let current = "", isByKey = false;
  const show = (name) => {
    if (!pages.has(name)) name = "Live";
    current = name;
    for (const tab of byId("tabs").children) {
      tab.setAttribute("aria-selected", String(tab.textContent === name));
      tab.tabIndex = tab.textContent === name ? 0 : -1;
      if (isByKey && tab.textContent === name) tab.focus();
    }
    isByKey = false;
    byId("content").replaceChildren(pages.get(name).node);
    byId("content").setAttribute("aria-label", name);
    say("");
    pages.get(name).shown?.();
  };
  byId("tabs").replaceChildren(...[...pages.keys()].map((name) => el("button", { type: "button", role: "tab", onclick: () => { location.hash = name; } }, name)));
  byId("tabs").onkeydown = (event) => {
    const names = [...pages.keys()], step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    location.hash = names[(names.indexOf(current) + step + names.length) % names.length];
    isByKey = true;
  };
  window.onhashchange = () => show(decodeURIComponent(location.hash.slice(1)));
  show(decodeURIComponent(location.hash.slice(1)) || "Live");
  const feed = new Feed({
    onSteps: (steps) => { for (const [name, page] of pages) page.take?.(steps, name === current && !document.hidden); },
    onLink: link,
    onSignedOut: (message) => { forget(); link("away", message); signIn(message).then(start); },
  });
  byId("sign-out").onclick = () => { feed.stop(); forget(); location.reload(); };
  feed.run();
}

start();
