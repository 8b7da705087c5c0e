// A new task: its name, its examples, and how it is learned.

import { ofTask, request, write } from "./api.js";
import { announce, attempt, find, fromTemplate, lines } from "./dom.js";
import { ExamplesInput } from "./examples_input.js";
import { taskAfter, Unfinished } from "./job.js";

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;

/** The view of a new task. ``begun`` is called when a task is being learned, ``learned`` with one that was. */
export function newTask(server, { begun, learned }) {
  const view = fromTemplate("new-task");
  const form = find("form", view);
  const input = new ExamplesInput();
  find("[data-slot=examples]", form).replaceWith(input.root);
  find("[data-part=how]", form).hidden = !server.adapters;
  const order = find("[data-part=order]", form);
  const orderText = find("textarea", order);
  const isOrdered = find("[name=ordered]", form);
  let labels = [];
  const fill = () => {
    order.hidden = !isOrdered.checked;
    const missing = labels.filter((label) => !lines(orderText.value).includes(label));
    if (isOrdered.checked && missing.length) orderText.value = [...lines(orderText.value), ...missing].join("\n");
  };
  isOrdered.addEventListener("change", fill);
  input.root.addEventListener("examples", ({ detail }) => {
    labels = detail;
    const name = find("[name=name]", form);
    if (!name.value && input.isFile && input.table) name.value = nameOf(input.fileName);
  });

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(form, async () => {
      const body = wanted(form, input);
      if (isOrdered.checked) body.label_order = lines(orderText.value);
      announce("Learning begins.");
      const response = await write("POST", "v1/tasks", body);
      begun();
      try {
        learned(await taskAfter(response, find("[data-slot=job]", form)));
      } catch (error) {
        // The name is taken by what was not learned; free it, so that the form can be sent again as it is.
        if (error instanceof Unfinished) await request("DELETE", ofTask(body.name)).catch(() => null);
        begun();
        throw error;
      }
    });
  });
  return view;
}

function wanted(form, input) {
  const field = find("[name=name]", form);
  const name = field.value.trim();
  field.removeAttribute("aria-invalid");
  if (!NAME.test(name)) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
    throw new Error("Give the task a name of letters, digits, dots, dashes and underscores; for example: tickets.");
  }
  const body = { name, examples: input.taken().examples, how: find("[name=how]:checked", form).value };
  if (new Set(body.examples.map(({ label }) => label)).size < 2) {
    throw new Error("All examples have the same label. Give some of at least two labels.");
  }
  return body;
}

/** A task's name out of a file's. */
function nameOf(file) {
  return file.replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 100);
}
