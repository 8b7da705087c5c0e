// Take a task away as files, or delete it.

import { ofTask, request } from "./api.js";
import { announce, attempt, element, find, fromTemplate, plural, saveAs } from "./dom.js";

const FORMATS = {
  posterior: ["Posterior (zip)", "All that was learned: for abmll predict and for Python."],
  peft: ["LoRA adapter (zip)", "The average of its members: for PEFT and all that reads its adapters."],
  "vllm-ensemble": ["Ensemble for vLLM (zip)", "All members, and a client that mixes their answers."],
};

/** The part of a task with its downloads and its end. */
export function files(context) {
  const root = fromTemplate("files");
  const formats = context.task.how === "full" ? Object.keys(FORMATS) : ["posterior"];
  find(".downloads", root).append(...formats.map((format) => {
    const button = element("button", { type: "button" }, FORMATS[format][0]);
    button.onclick = () => attempt(button, () => download(root, context.name, format), find(".notice", root));
    return element("li", {}, button, element("p", { class: "hint" }, FORMATS[format][1]));
  }));
  const dialog = find("dialog", root);
  let task = context.task;
  find("[data-part=delete]", root).onclick = () => ask(dialog, task);
  find("[data-part=keep]", dialog).onclick = () => dialog.close();
  find("form", dialog).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(dialog, async () => {
      await request("DELETE", ofTask(context.name));
      dialog.close();
      announce(`${context.name} is deleted.`);
      context.deleted();
    });
  });
  return { root, update: (now) => { task = now; } };
}

async function download(root, name, format) {
  const outcome = find(".outcome", root);
  outcome.textContent = "Preparing the file.";
  try {
    const headers = { Accept: "application/zip" };
    const response = await request("POST", ofTask(name, "/export"), { body: { format }, headers });
    saveAs(await response.blob(), `${name}_${format}.zip`);
    outcome.textContent = "Downloaded.";
  } catch (error) {
    outcome.textContent = "";
    throw error;
  }
}

function ask(dialog, task) {
  find("h2", dialog).textContent = `Delete ${task.name}?`;
  find("p", dialog).textContent = `Its ${plural(task.num_examples, "example")} and all versions will be gone.`;
  find(".notice", dialog).textContent = "";
  dialog.showModal();
}
