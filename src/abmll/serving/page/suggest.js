// Which of many unlabelled texts are worth a label, and a place to give them one.

import { ofTask, request } from "./api.js";
import {
  announce, attempt, element, find, focusOn, fromTemplate, lines, nats, plural, setOptions, tieLabels,
} from "./dom.js";
import { add } from "./teach.js";

/** The part of a task that suggests what to label next. */
export function suggest(context) {
  const root = fromTemplate("suggest");
  const pool = find("[data-part=pool]", root);
  const labels = find("[data-part=labels]", root);
  pool.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(pool, () => order(pool, labels, context));
  });
  labels.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(labels, () => learn(pool, labels, context));
  });
  return { root };
}

async function order(pool, form, context) {
  const texts = [...new Set(lines(find("textarea", pool).value))];
  if (!texts.length) throw new Error("Paste some texts first.");
  const number = Number(find("[name=number]", pool).value) || 10;
  announce("Looking for the texts that are worth a label.");
  const response = await request("POST", ofTask(context.name, "/suggest"), { body: { texts, number } });
  const found = await response.json();
  const rows = found.order.slice(0, number)
    .map((index, rank) => item(texts[index], found.mutual_information[rank], context.task.labels));
  find(".cards", form).replaceChildren(...rows);
  find(".outcome", form).textContent = "";
  form.hidden = false;
  announce(`${plural(rows.length, "text")} worth a label.`);
  focusOn(find("h2", form));
}

function item(text, doubt, labels) {
  const select = element("select", {});
  setOptions(select, labels, "", "No label");
  const field = element("div", { class: "field" }, element("label", {}, "Label"), select);
  const said = element("p", { class: "quoted" }, text);
  const row = element("li", { class: "card to-label" }, said, element("span", { class: "number" }, nats(doubt)), field);
  tieLabels(row);
  select.setAttribute("aria-label", `Label of: ${text.slice(0, 200)}`);
  return row;
}

async function learn(pool, form, context) {
  const chosen = [...form.querySelectorAll(".to-label")].filter((row) => find("select", row).value);
  if (!chosen.length) throw new Error("Choose a label for at least one text first.");
  const examples = chosen.map((row) => ({ text: find(".quoted", row).textContent, label: find("select", row).value }));
  const outcome = find(".outcome", form);
  outcome.textContent = "";
  const task = await add(context, examples, find("[data-slot=job]", form));
  const known = new Set(examples.map(({ text }) => text));
  const field = find("textarea", pool);
  field.value = lines(field.value).filter((text) => !known.has(text)).join("\n");
  for (const row of chosen) row.remove();
  const more = field.value ? " Suggest again for an order that knows them." : "";
  outcome.textContent = `${plural(examples.length, "example")} added. Version ${task.version} has learned them.${more}`;
}
