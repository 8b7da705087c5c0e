// One answer: the probability of each label, the two kinds of doubt, and a way to say what is right.

import { attempt, element, find, fromTemplate, nats, percent, setOptions } from "./dom.js";
import { add } from "./teach.js";

const SHOWN_LABELS = 6; // the others are a click away

/** The card of an answer. ``context`` is the task's, as in task.js. */
export function card(text, answer, { labels, order }, context) {
  const root = fromTemplate("answer");
  find(".quoted", root).textContent = text;
  find(".verdict strong", root).textContent = answer.label;
  find(".verdict span", root).textContent = percent(answer.probabilities[answer.label]);
  const ranked = Object.entries(answer.probabilities);
  if (!order) ranked.sort(([, one], [, other]) => other - one);
  const rows = ranked.map(([label, value]) => bar(label, value, label === answer.label));
  find(".bars tbody", root).append(...rows.slice(0, SHOWN_LABELS));
  const rest = find(".rest", root);
  rest.hidden = rows.length <= SHOWN_LABELS;
  find("summary", rest).textContent = `${rows.length - SHOWN_LABELS} more labels`;
  find("tbody", rest).append(...rows.slice(SHOWN_LABELS));
  showDoubt(find(".doubt", root), answer, labels.length);
  const cut = "This text is too long: only a part of it was read.";
  if (answer.truncated) find(".quoted", root).after(element("p", { class: "hint" }, cut));
  corrections(find(".correct", root), text, answer, labels, context);
  return root;
}

function bar(label, value, isChosen) {
  const filled = element("span", { class: "bar" });
  filled.style.width = `${value * 100}%`;
  return element("tr", { class: isChosen && "chosen" }, element("th", { scope: "row" }, label),
    element("td", { class: "wide" }, element("span", { class: "track" }, filled)),
    element("td", { class: "number" }, percent(value)));
}

/** The doubt that comes of few examples beside that of the text itself, as parts of the most there can be. */
function showDoubt(place, answer, numLabels) {
  const most = Math.log(numLabels);
  const few = Math.min(Math.max(answer.mutual_information, 0), Math.max(answer.entropy, 0));
  const itself = Math.max(answer.entropy - few, 0);
  const split = find(".split", place);
  find(".few", split).style.width = `${(few / most) * 100}%`;
  find(".itself", split).style.width = `${(itself / most) * 100}%`;
  const numbers = `${nats(few)} from few examples, ${nats(itself)} from the text itself, of at most ${nats(most)} nats`;
  split.setAttribute("aria-label", `Doubt: ${numbers}`);
  const words = element("strong", {}, inWords(few, itself, most));
  find("p", place).replaceChildren(words, " ", element("span", { class: "key few" }), `${nats(few)} few examples `,
    element("span", { class: "key itself" }), `${nats(itself)} the text itself `,
    element("span", { class: "of" }, `of ${nats(most)} nats`));
}

/** What the doubt of an answer is, and whether more examples would help. */
export function inWords(few, itself, most) {
  const total = few + itself;
  if (total < 0.15 * most) return "Little doubt.";
  const size = total < 0.6 * most ? "Some doubt" : "Much doubt";
  if (few >= 0.5 * total) return `${size}, mostly for want of examples: label more texts like this.`;
  if (few >= 0.2 * total) return `${size}, partly for want of examples: more texts like this would help.`;
  return `${size}, which lies in the text itself: more examples would hardly help.`;
}

function corrections(form, text, answer, labels, context) {
  const right = find("[data-part=right]", form);
  right.textContent = `Yes, it is ${answer.label}`;
  setOptions(find("select", form), labels.filter((label) => label !== answer.label), "", "Choose…");
  const save = (label) => attempt(form, async () => {
    if (!label) throw new Error("Choose the label that is right first.");
    const outcome = find(".outcome", form);
    outcome.textContent = "";
    const task = await add(context, [{ text, label }], find("[data-slot=job]", form));
    outcome.textContent = `Now an example of “${label}”. Version ${task.version} has learned it.`;
  });
  right.onclick = () => save(answer.label);
  form.onsubmit = (event) => {
    event.preventDefault();
    save(find("select", form).value);
  };
}
