// The examples of a task: find, remove, download, add.

import { get, ofTask, request } from "./api.js";
import { announce, attempt, confirmed, element, find, fromTemplate, plural, saveCsv } from "./dom.js";
import { ExamplesInput } from "./examples_input.js";
import { add, remove } from "./teach.js";

const AT_ONCE = 50; // rows that are shown before one asks for more
const SHOWN_LABELS = 5; // of those that are new

/** The part of a task that lists its examples. */
export function examples(context) {
  const root = fromTemplate("examples");
  const list = new List(root, context);
  find("[name=find]", root).addEventListener("input", () => list.show());
  find("[data-part=more]", root).onclick = () => list.show(list.number + AT_ONCE);
  const putBack = () => add(context, [list.removed], list.place);
  find("[data-part=undo]", root).onclick = () => list.change(putBack, "Undone.", false);
  find("[data-part=save]", root).onclick = (event) => attempt(event.target, async () => {
    const response = await request("GET", ofTask(context.name, "/examples"), { headers: { Accept: "text/csv" } });
    saveCsv(await response.blob(), `${context.name}.csv`);
  }, find(".notice", root));
  adding(find("form", root), context);
  return { root, update: (task) => list.load(task) };
}

function adding(form, context) {
  const input = new ExamplesInput();
  find("[data-slot=examples]", form).replaceWith(input.root);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, async () => {
      const { examples: taken, leftOut } = input.taken();
      const outcome = find(".outcome", form);
      outcome.textContent = "";
      await askAboutNew(taken, context.task);
      const task = await add(context, taken, find("[data-slot=job]", form));
      input.clear();
      const added = `${plural(taken.length, "example")} added. Version ${task.version} has learned them.`;
      outcome.textContent = [added, leftOut].filter(Boolean).join(" ");
    });
  });
}

/** Ask whether labels that the task has not are meant, as one that is mistyped makes it larger. Raises Error if not. */
async function askAboutNew(examples, task) {
  const known = new Set([...task.labels, ...Object.keys(task.counts)]);
  const fresh = [...new Set(examples.map(({ label }) => label))].filter((label) => !known.has(label));
  if (!fresh.length) return;
  const names = fresh.slice(0, SHOWN_LABELS).map((label) => `“${label}”`).join(", ");
  const more = fresh.length > SHOWN_LABELS ? ` and ${fresh.length - SHOWN_LABELS} more` : "";
  const question = fresh.length === 1 ? `${names} is a new label. Keep it?` : `${names}${more} are new labels. Keep them?`;
  const answer = await confirmed(question, `This task has ${[...known].join(", ")}.`, "Keep", "Go back");
  if (!answer) throw new Error("Nothing was added: correct the label, then add again.");
}

class List {
  constructor(root, context) {
    this.root = root;
    this.context = context;
    this.rows = [];
    this.number = AT_ONCE;
    this.place = find("[data-slot=job]", root);
    this.removed = null;
  }

  /** Read the examples again where the task has another version than the one that is shown. */
  async load(task) {
    const state = `${task.version} ${task.num_examples}`;
    if (state === this.state) return;
    this.state = state;
    try {
      this.rows = (await get(ofTask(this.context.name, "/examples"))).examples;
      this.show();
    } catch (error) {
      this.state = null;
      find(".notice", this.root).textContent = error.message;
    }
  }

  show(number = AT_ONCE) {
    this.number = number;
    const wanted = find("[name=find]", this.root).value.trim().toLowerCase();
    const found = this.rows.filter(({ text, label }) => `${text}\n${label}`.toLowerCase().includes(wanted));
    find("tbody", this.root).replaceChildren(...found.slice(0, number).map((example) => this.#row(example)));
    find("table", this.root).hidden = !found.length;
    find("[data-part=more]", this.root).hidden = found.length <= number;
    const all = plural(this.rows.length, "example");
    find("[data-part=found]", this.root).textContent = wanted ? `${found.length} of ${all}` : all;
  }

  #row(example) {
    const name = `Remove: ${example.text.slice(0, 200)}`;
    const button = element("button", { type: "button", class: "small", "aria-label": name }, "Remove");
    button.onclick = () => {
      this.removed = { text: example.text, label: example.label };
      const work = () => remove(this.context, [example.text], this.place);
      this.change(work, `Removed “${example.text.slice(0, 80)}”.`, true);
    };
    return element("tr", {}, element("td", { class: "text" }, example.text), element("td", {}, example.label),
      element("td", { class: "number" }, `v${example.version}`), element("td", {}, button));
  }

  /** Add or remove an example, say so, and offer to undo it or not. */
  async change(work, done, canUndo) {
    const undo = find("[data-part=undo]", this.root);
    if (!(await attempt(find("table", this.root), work, find(".notice", this.root)))) return;
    undo.hidden = !canUndo;
    announce(done);
    (canUndo ? undo : find("[name=find]", this.root)).focus();
  }
}
