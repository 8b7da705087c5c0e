// What programs can ask: the server's own description (OpenAPI) to be read by people.

import { element, find } from "./dom.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const DEEPEST = 8; // levels of a form that are written out

/** A form of JSON in a few lines: {"name": string, "how"?: "head" | "full"}. ``definitions`` are what it refers to. */
export function form(schema, definitions, indent = "", depth = 0) {
  if (schema.$ref) schema = definitions[schema.$ref.split("/").pop()] ?? {};
  if (depth > DEEPEST) return "…";
  const same = (inner) => form(inner, definitions, indent, depth + 1);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.map((choice) => same(choice)).join(" | ");
  if (schema.type === "array") return `[${schema.items ? same(schema.items) : "any"}, …]`;
  if (schema.type === "object" && schema.additionalProperties) return `{TEXT: ${same(schema.additionalProperties)}}`;
  if (!schema.properties) return schema.type ?? "any";
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties)
    .map(([name, inner]) => {
      const value = form(inner, definitions, `${indent}  `, depth + 1);
      return `${indent}  "${name}"${required.has(name) ? "" : "?"}: ${value}`;
    });
  return `{\n${rows.join(",\n")}\n${indent}}`;
}

/** One operation: its address, what it does, its parameters, the form of its body. */
function operation(method, path, described, common) {
  const heading = element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`));
  const parts = [heading, element("p", {}, ...prose(described.description ?? described.summary ?? ""))];
  const parameters = described.parameters ?? [];
  if (parameters.length) parts.push(element("ul", {}, ...parameters.map((one) => parameter(one, common))));
  parts.push(...bodies("Body", described.requestBody, common));
  for (const [status, answer] of Object.entries(described.responses ?? {})) {
    if (/^2/.test(status)) parts.push(...bodies(`Answer ${status}`, answer, common));
  }
  return element("section", {}, ...parts);
}

/** The forms of a body, one for each type that it may have. */
function bodies(words, described, definitions) {
  return Object.entries(described?.content ?? {}).flatMap(([type, { schema }]) => [
    element("p", {}, `${words}, `, element("code", {}, type), ":"),
    element("pre", { tabindex: "0" }, form(schema ?? {}, definitions)),
  ]);
}

/** Text in which ``code`` stands between double backticks. */
function prose(text) {
  return text.split("``").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function parameter({ name, in: where, required, schema, description }, definitions) {
  const about = [where, form(schema ?? {}, definitions), required ? "needed" : null].filter(Boolean).join(", ");
  return element("li", {}, element("code", {}, name), ` (${about})${description ? `: ${description}` : ""}`);
}

async function start() {
  const place = find("#operations");
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(`The server answered ${response.status}.`);
    const { paths, components } = await response.json();
    const found = Object.entries(paths).flatMap(([path, methods]) => METHODS.filter((method) => methods[method])
      .map((method) => operation(method, path, methods[method], components?.schemas ?? {})));
    place.replaceChildren(...found);
  } catch (error) {
    find(".notice").textContent = error.message;
  }
}

start();
