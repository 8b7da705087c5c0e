// How good a task's answers are: by cross-validation on its own examples.

import { get, ofTask, request } from "./api.js";
import { element, find, fromTemplate, percent, plural } from "./dom.js";

/** The part of a task that says how far to trust it. */
export function quality(context) {
  const root = fromTemplate("quality");
  let shown = null;
  const update = async (task) => {
    const state = `${task.version} ${Boolean(task.quality)}`;
    if (state === shown) return;
    shown = state;
    find(".notice", root).textContent = "";
    try {
      await show(root, context.name, task);
    } catch (error) {
      shown = null;
      find(".notice", root).textContent = error.message;
    }
  };
  return { root, update };
}

async function show(root, name, task) {
  const known = find("[data-part=known]", root);
  known.hidden = !task.quality;
  find("[data-part=lead]", root).textContent = lead(task);
  if (task.quality) {
    const measured = await get(ofTask(name, "/quality"));
    find(".metrics", root).replaceChildren(...metrics(measured));
    find("tbody", known).replaceChildren(...filled(measured).map(row));
    const figure = await request("GET", ofTask(name, "/reliability.svg"), { headers: { Accept: "image/svg+xml" } });
    const image = find("img", root);
    URL.revokeObjectURL(image.src); // fetched rather than named in src, where no token would go along
    image.src = URL.createObjectURL(await figure.blob());
    image.alt = inWords(measured);
  }
  const { versions } = await get(ofTask(name, "/versions"));
  versions.sort((one, other) => other.version - one.version);
  find("[data-part=versions] tbody", root).replaceChildren(...versions.map(versionRow));
}

function lead({ quality: known, how }) {
  if (known) return `Each of ${plural(known.num_examples, "example")} was answered by what is learned from the others.`;
  if (how === "full") return "Not known: only a head is cross-validated, and this task has adapters.";
  return "Not known yet. It is being measured, or there are too few examples: five of every label are enough.";
}

function metrics({ accuracy, nll, ece }) {
  const one = (name, value, meaning) => element("div", {}, element("dt", {}, name),
    element("dd", {}, element("strong", {}, value), element("span", {}, meaning)));
  return [
    one("Accuracy", percent(accuracy, 0), "of answers were right"),
    one("NLL", nll.toFixed(3), "nats of surprise at the right label; less is better"),
    one("ECE", percent(ece), "is how far confidence and truth lie apart"),
  ];
}

const filled = ({ bins }) => bins.filter(({ count }) => count > 0);

function row({ low, high, confidence, accuracy, count }) {
  const cells = [percent(confidence, 0), percent(accuracy, 0), String(count)];
  return tableRow(`${percent(low, 0)} to ${percent(high, 0)}`, cells);
}

/** The figure in words, for who does not see it. */
function inWords(measured) {
  const parts = filled(measured).map(({ low, high, accuracy, count }) =>
    `at ${percent(low, 0)} to ${percent(high, 0)} confidence, ${percent(accuracy, 0)} of ${count} right`);
  return `Reliability figure: ${parts.join("; ")}.`;
}

function versionRow({ version, created, num_examples, quality: measured }) {
  const shown = new Date(created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const made = element("time", { datetime: created }, shown);
  const accuracy = measured ? percent(measured.accuracy, 0) : "not known";
  return tableRow(String(version), [made, String(num_examples), accuracy]);
}

function tableRow(heading, cells) {
  return element("tr", {}, element("th", { scope: "row" }, heading), ...cells.map((cell) => element("td", {}, cell)));
}
