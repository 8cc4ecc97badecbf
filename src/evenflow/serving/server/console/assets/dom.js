// Elements, texts and numbers. Text from the server only ever becomes a text node: no name or prompt is read as markup.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value === "boolean") made[name] = value;
    else if (value !== undefined && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const units = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  for (const [unit, letter] of units) if (size >= unit) return trim(value / unit) + letter;
  return trim(value);
}

function trim(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function bytes(value) {
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]])
    if (value >= unit) return `${trim(value / unit)} ${name}`;
  return `${value} B`;
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

export function table(caption, headers, rows) {
  const head = headers.map((header) => el("th", { scope: "col", class: header.isNumber ? "n" : "" }, header.text ?? header));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, i) => el("td", { class: headers[i].isNumber ? "n" : "name" }, cell))));
  return el("div", { class: "scroll" }, el("table", {}, el("caption", { class: "soft" }, caption), el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...body)));
}

export const number = (text) => ({ text, isNumber: true });

export function say(text) {
  const notice = document.getElementById("notice");
  notice.textContent = text;
  notice.hidden = !text;
}
