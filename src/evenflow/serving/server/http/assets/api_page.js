"use strict";
// Everything is put into the page as text, never as markup.
function make(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return typeOf(schema.items) + "[]";
  const bounds = ["minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"]
    .filter((name) => name in schema).map((name) => name + " " + schema[name]);
  return (schema.type || "any") + (bounds.length ? " (" + bounds.join(", ") + ")" : "");
}

function fields(schema) {
  const table = make("table");
  const required = new Set(schema.required || []);
  for (const [name, field] of Object.entries(schema.properties || {})) {
    table.append(make("tr", "", make("td", "", make("code", name + (required.has(name) ? " *" : ""))),
      make("td", "", make("code", typeOf(field))), make("td", field.description || "")));
  }
  return table;
}

function example(schema, all, depth) {
  if (!schema || depth > 4) return null;
  if (schema.$ref) return example(all[schema.$ref.split("/").pop()], all, depth + 1);
  if (schema.anyOf) return example(schema.anyOf[0], all, depth + 1);
  if (schema.enum) return schema.enum[0];
  if (schema.type === "array") return [example(schema.items, all, depth + 1)];
  if (schema.type === "object") {
    const wanted = new Set(schema.required || []);
    return Object.fromEntries(Object.entries(schema.properties || {}).filter(([name]) => wanted.has(name))
      .map(([name, field]) => [name, example(field, all, depth + 1)]));
  }
  return { string: "user", integer: 1, number: 1, boolean: false }[schema.type] ?? null;
}

function trial(path, method, schema, all) {
  const key = make("input"), body = make("textarea"), send = make("button", "Send"), answer = make("pre");
  key.placeholder = "API key, if one is needed";
  body.value = schema ? JSON.stringify(example(schema, all, 0), null, 2) : "";
  send.addEventListener("click", async () => {
    answer.textContent = "...";
    const headers = schema ? { "content-type": "application/json" } : {};
    if (key.value) headers.authorization = "Bearer " + key.value;
    try {
      const reply = await fetch(path.replace(/^\//, ""), { method: method.toUpperCase(), headers, body: schema ? body.value : undefined });
      answer.textContent = reply.status + " " + reply.statusText + "\n\n" + await reply.text();
    } catch (error) {
      answer.textContent = String(error);
    }
  });
  const box = make("div", "", key, " ", send);
  if (schema) box.append(body);
  box.append(answer);
  return box;
}

function operation(path, method, what, all) {
  const box = make("details", "", make("summary", "", make("b", method.toUpperCase()), make("code", path), " " + (what.summary || "")));
  box.append(make("p", what.description || ""));
  const content = what.requestBody && what.requestBody.content["application/json"];
  const schema = content && all[typeOf(content.schema)];
  if (schema) box.append(make("h4", "Body: " + typeOf(content.schema)), fields(schema));
  const answers = make("table");
  for (const [status, reply] of Object.entries(what.responses || {})) {
    const kinds = Object.entries(reply.content || {}).map(([kind, value]) => kind + " " + typeOf(value.schema)).join(", ");
    answers.append(make("tr", "", make("td", status), make("td", "", make("code", kinds)), make("td", reply.description)));
  }
  box.append(make("h4", "Answers"), answers, make("h4", "Try it"), trial(path, method, schema, all));
  return box;
}

async function show() {
  const page = document.getElementById("page");
  const spec = await (await fetch("openapi.json")).json();
  const all = spec.components.schemas;
  page.replaceChildren(make("h1", spec.info.title + " " + spec.info.version), make("p", spec.info.description));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, what] of Object.entries(methods)) page.append(operation(path, method, what, all));
  }
  page.append(make("h2", "Types"));
  for (const [name, schema] of Object.entries(all)) {
    page.append(make("details", "", make("summary", "", make("code", name)), make("p", schema.description || ""), fields(schema)));
  }
}

show().catch((error) => document.getElementById("page").append(make("pre", String(error))));
