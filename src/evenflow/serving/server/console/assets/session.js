// Who looks: the key of this tab, calls with it, and the form that asks for it.

const NAME = "evenflow-key";
export const BASE = new URL("../", document.baseURI);

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem(NAME) ?? "";
}

export function forget() {
  sessionStorage.removeItem(NAME);
}

export function headers(more = {}) {
  return key() ? { ...more, authorization: `Bearer ${key()}` } : more;
}

// A call of this server's API; raises Refused with the server's own words.
export async function call(path, { method = "GET", body, signal } = {}) {
  const given = body === undefined ? {} : { "content-type": "application/json" };
  const answer = await fetch(new URL(path, BASE), {
    method, signal, headers: headers(given), body: body === undefined ? undefined : JSON.stringify(body), credentials: "omit", cache: "no-store",
  });
  if (!answer.ok) throw new Refused(answer.status, await words(answer));
  return answer;
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

async function words(answer) {
  const text = await answer.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.message ?? text;
  } catch {
    return text || `the server answered ${answer.status}`;
  }
}

// Events of a stream: calls take(event name, data text) for each. Ends when the stream does.
export async function events(answer, take) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const name = lines.find((line) => line.startsWith("event: "))?.slice(7) ?? "message";
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data) take(name, data);
    }
  }
}

// Ask for a key until there is one that the server knows. Returns what it says of its holder.
export async function signIn(why = "") {
  const dialog = document.getElementById("sign-in");
  const input = document.getElementById("sign-in-key");
  if (why) document.getElementById("sign-in-why").textContent = why;
  for (;;) {
    input.value = "";
    if (!dialog.open) dialog.showModal();
    const given = await new Promise((resolve) => {
      dialog.addEventListener("cancel", (event) => event.preventDefault(), { once: true });
      document.getElementById("sign-in-form").addEventListener("submit", (event) => {
        event.preventDefault();
        resolve(input.value.trim());
      }, { once: true });
    });
    sessionStorage.setItem(NAME, given);
    try {
      const who = await json("v1/console/who");
      dialog.close();
      return who;
    } catch (error) {
      forget();
      document.getElementById("sign-in-why").textContent = error.message;
    }
  }
}
