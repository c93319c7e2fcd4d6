// Lists /openapi.json: every path, its parameters, and the shape of what goes in and out. Works without any network but ours.
"use strict";

function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

const DEPTH_MAX = 4;

// A schema as the example of its shape that a person reads fastest.
function shape(schema, all, depth = 0) {
  if (!schema || depth > DEPTH_MAX) return "…";
  if (schema.$ref) return shape(all[schema.$ref.split("/").pop()], all, depth);
  const either = schema.anyOf || schema.oneOf;
  if (either) return shape(either.find((one) => one.type !== "null") || either[0], all, depth);
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return schema.const;
  if (schema.type === "array") return [shape(schema.items, all, depth + 1)];
  if (schema.properties) return Object.fromEntries(Object.entries(schema.properties).map(([name, value]) => [name, shape(value, all, depth + 1)]));
  return schema.format || schema.type || "any";
}

function body(title, content, all) {
  const found = Object.entries(content || {})[0];
  if (!found) return [];
  const [media, { schema }] = found;
  return [make("h3", `${title} (${media})`), make("pre", JSON.stringify(shape(schema, all), null, 2))];
}

function parameters(list) {
  if (!list?.length) return [];
  const table = make("table");
  for (const found of list) {
    const line = make("tr");
    line.append(make("td", found.name), make("td", `${found.in}${found.required ? ", required" : ""}`, "quiet"), make("td", found.description || found.schema?.description || ""));
    table.append(line);
  }
  return [make("h3", "Parameters"), table];
}

function operation(path, verb, about, all) {
  const box = make("details"), head = make("summary");
  head.append(make("span", verb.toUpperCase(), "verb"), make("code", path), make("span", (about.description || about.summary || "").split("\n")[0], "quiet"));
  const good = Object.entries(about.responses).find(([status]) => status.startsWith("2"));
  box.append(head, ...parameters(about.parameters), ...body("Request", about.requestBody?.content, all), ...body(`Answer ${good?.[0] ?? ""}`, good?.[1].content, all));
  return box;
}

async function show() {
  const document_ = await (await fetch("/openapi.json")).json();
  const all = document_.components.schemas, groups = new Map();
  for (const [path, verbs] of Object.entries(document_.paths))
    for (const [verb, about] of Object.entries(verbs)) {
      const tag = about.tags?.[0] || "other";
      groups.set(tag, [...(groups.get(tag) || []), operation(path, verb, about, all)]);
    }
  const intro = make("p", "Authenticate with the header Authorization: Bearer <API key or token>, or X-API-Key. Lists answer {data, next_cursor}, single things {data}; refusals are problem details (RFC 9457) with reason and remedy. Money is integer nano-USD.");
  const sections = [...groups].map(([tag, boxes]) => {
    const section = make("section", undefined, "card");
    section.append(make("h2", tag), ...boxes);
    return section;
  });
  document.getElementById("docs").replaceChildren(intro, ...sections);
}

show().catch((error) => { document.getElementById("docs").textContent = `openapi.json cannot be read: ${error.message}`; });
