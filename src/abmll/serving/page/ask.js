// Asking a task about texts.

import { ofTask, request } from "./api.js";
import { card } from "./answer.js";
import { announce, attempt, element, find, focusOn, fromTemplate, lines, plural, saveCsv } from "./dom.js";
import { toCsv } from "./examples_text.js";

const AT_ONCE = 20; // answers that are shown before one asks for more

/** The part of a task that answers. */
export function ask(context) {
  const root = fromTemplate("ask");
  const form = find("form", root);
  const field = find("textarea", form);
  const shown = { texts: [], prediction: null };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, async () => {
      const texts = find("[name=by_line]", form).checked ? lines(field.value) : [field.value.trim()].filter(Boolean);
      if (!texts.length) throw new Error("Write a text first.");
      announce("Asking.");
      const response = await request("POST", ofTask(context.name, "/predict"), { body: { texts } });
      Object.assign(shown, { texts, prediction: await response.json() });
      show(root, shown, context);
    });
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  find("[data-part=more]", root).onclick = () => showMore(root, shown, context);
  find("[data-part=save]", root).onclick = () => {
    saveCsv(csvOf(shown), `${context.name}_answers.csv`);
  };
  return { root, update: (task) => update(root, form, shown, task) };
}

function show(root, shown, context) {
  const answers = find(".answers", root);
  answers.hidden = false;
  find(".cards", answers).replaceChildren();
  showMore(root, shown, context);
  update(root, find("form", root), shown, context.task);
  announce(`${plural(shown.texts.length, "answer")}.`);
  focusOn(find("h2", answers));
}

function showMore(root, { texts, prediction }, context) {
  const cards = find(".cards", root);
  const from = cards.childElementCount;
  const kind = { labels: prediction.labels, order: context.task.label_order };
  const more = texts.slice(from, from + AT_ONCE)
    .map((text, index) => card(text, prediction.answers[from + index], kind, context));
  cards.append(...more);
  find("[data-part=more]", root).hidden = cards.childElementCount === texts.length;
  if (from) find("select", more[0])?.focus();
}

/** Say which version answered, and whether there is a newer one; or that none can answer yet. */
function update(root, form, { prediction }, task) {
  const canAnswer = ["ready", "updating"].includes(task.state);
  find(".primary", form).hidden = !canAnswer;
  find("[data-part=not-yet]", form).hidden = canAnswer;
  if (!prediction) return;
  const line = find("[data-part=version]", root);
  const again = element("button", { type: "button", class: "small" }, "Ask again");
  again.onclick = () => form.requestSubmit();
  const newer = task.version > prediction.version ? [` Version ${task.version} is there. `, again] : [];
  line.replaceChildren(`Answered by version ${prediction.version}.`, ...newer);
}

/** Under the names that the columns have in a file of abmll predict. */
function csvOf({ texts, prediction }) {
  const { labels, answers } = prediction;
  const probabilities = labels.map((label) => `prob_${label}`);
  const heading = ["text", "predicted_label", ...probabilities, "entropy", "mutual_information"];
  const rows = answers.map(({ label, probabilities, entropy, mutual_information }, index) =>
    [texts[index], label, ...labels.map((one) => probabilities[one]), entropy, mutual_information]);
  return toCsv([heading, ...rows]);
}
