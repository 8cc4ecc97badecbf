// Elements from data, by textContent only: nothing that a server says is ever read as HTML.
type Child = Node | string | number;
type Props = Record<string, string | number | boolean | ((event: any) => void)>;

export function el<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, String(value));
  }
  node.append(...children.map((child) => (typeof child === "number" ? String(child) : child)));
  return node;
}

export function table(heads: string[], rows: Child[][], caption: string): HTMLElement {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "sr" }, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) =>
        el("td", typeof cell === "number" || (typeof cell === "string" && /^[\d.,\s–-]+[kMGB%s]*$/.test(cell)) ? { class: "num" } : {},
          typeof cell === "number" ? short(cell) : cell)))))));
}

export function short(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return (value / 1e9).toFixed(2) + "G";
  if (size >= 1e6) return (value / 1e6).toFixed(2) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(1) + "k";
  return Number.isInteger(value) ? String(value) : value.toFixed(size < 1 ? 3 : 1);
}
