// Small helpers around the document. Whatever a user wrote enters it as text, never as markup.

let counted = 0;

/** The first element that matches. */
export const find = (selector, root = document) => root.querySelector(selector);

/** A new element; a child that is a string becomes text. An attribute that is false or null is left out. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** A copy of a template's element, with its labels and hints tied to their fields. */
export function fromTemplate(id) {
  const copy = document.getElementById(id).content.firstElementChild.cloneNode(true);
  tieLabels(copy);
  return copy;
}

/** Give every field below ``root`` an id that its label and hint refer to. */
export function tieLabels(root) {
  for (const field of root.querySelectorAll(".field, .inline")) {
    const control = find("input, textarea, select", field);
    control.id = `field-${++counted}`;
    find("label", field).htmlFor = control.id;
    const hint = find(".hint", field);
    if (hint) {
      hint.id = `${control.id}-hint`;
      control.setAttribute("aria-describedby", hint.id);
    }
  }
}

/** Read a sentence to whoever listens to the page. */
export function announce(sentence) {
  find("#announcer").textContent = sentence;
}

/** Do some work of a form or a button: once at a time, with what went wrong beside it. Whether it went well. */
export async function attempt(place, work, notice = find(".notice", place)) {
  if (place.getAttribute("aria-busy") === "true") return false;
  place.setAttribute("aria-busy", "true");
  notice.textContent = "";
  try {
    await work();
    return true;
  } catch (error) {
    notice.textContent = error.message;
    return false;
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** Move the keyboard's focus to a heading, whose first words a screen reader then reads. */
export function focusOn(heading) {
  heading.focus({ preventScroll: true });
  heading.scrollIntoView({ block: "nearest" });
}

/** Options of a ``select``, one for each value. */
export function setOptions(select, values, chosen = "", prompt = null) {
  const options = values.map((value) => element("option", { value }, value));
  if (prompt !== null) options.unshift(element("option", { value: "" }, prompt));
  select.replaceChildren(...options);
  select.value = chosen;
}

/** Let a browser save some data under a name. */
export function saveAs(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** The same of a CSV. With a byte-order mark spreadsheets know that it is UTF-8. */
export function saveCsv(text, name) {
  saveAs(new Blob(["\ufeff", text], { type: "text/csv" }), name);
}

/** Ask a question on top of the page; whether the answer was ``yes``. */
export function confirmed(question, hint, yes, no) {
  const dialog = find("#question");
  find("h2", dialog).textContent = question;
  find("p", dialog).textContent = hint;
  find("[value=yes]", dialog).textContent = yes;
  find("[value=no]", dialog).textContent = no;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}

export const lines = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
export const nats = (value) => value.toFixed(2);

/** A probability as a percentage that never claims certainty. */
export function percent(value, digits = 1) {
  const edge = 10 ** -digits;
  const shown = value * 100;
  if (value < 1 && shown > 100 - edge / 2) return `over ${(100 - edge).toFixed(digits)} %`;
  if (value > 0 && shown < edge / 2) return `under ${edge.toFixed(digits)} %`;
  return `${shown.toFixed(digits)} %`;
}
