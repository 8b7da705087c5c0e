// Where examples are given: pasted lines or a CSV file. Shows the labels and their counts before anything is learned.

import { element, find, fromTemplate, plural, setOptions } from "./dom.js";
import {
  contradictions, countLabels, decoded, fromCsv, fromLines, fromRows, guessColumns, once,
} from "./examples_text.js";

const SHOWN_FAULTS = 5;
const WAIT_MS = 300; // after the last key, before what was typed is summed up

/** The part of a form that takes examples. */
export class ExamplesInput {
  constructor() {
    this.root = fromTemplate("examples-input");
    this.table = null; // of the file: names of its columns, rows
    this.fileName = "";
    for (const radio of this.root.querySelectorAll("[name=source]")) {
      radio.addEventListener("change", () => this.#switch());
    }
    this.lines = find("[name=lines]", this.root);
    this.lines.addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.show(), WAIT_MS);
    });
    find("[name=file]", this.root).addEventListener("change", (event) => this.#open(event.target.files[0]));
    this.columns = { text: find("[name=text]", this.root), label: find("[name=label]", this.root) };
    for (const select of Object.values(this.columns)) select.addEventListener("change", () => this.show());
  }

  get isFile() {
    return find("[name=source]:checked", this.root).value === "file";
  }

  /** The examples that are given, and what is left out of them, in words. Raises Error, in a sentence, where there are
  none or a line is faulty. */
  taken() {
    const { examples, faults } = this.#read();
    if (!this.isFile && faults.length) throw new Error(faults[0]);
    if (!examples.length && this.isFile) throw new Error("Choose a CSV file and its columns first.");
    if (!examples.length) throw new Error("Paste some examples first.");
    return { examples: once(examples), leftOut: leftOut(examples, faults) };
  }

  /** Forget what was given: it has been learned. */
  clear() {
    this.lines.value = find("[name=file]", this.root).value = "";
    this.table = null;
    this.show();
  }

  /** Sum up what is given so far. */
  show() {
    const { examples, faults, missing } = this.#read();
    const kept = once(examples);
    const counts = countLabels(kept);
    const remarks = faults.slice(0, SHOWN_FAULTS);
    const hidden = faults.length - SHOWN_FAULTS;
    if (hidden > 0) remarks.push(`And ${hidden} more like these.`);
    const torn = contradictions(examples);
    if (torn.length) remarks.push(`“${torn[0]}” is there with two labels.`);
    if (torn.length > 1) remarks.push(`So are ${torn.length - 1} other texts.`);
    const summary = `${plural(kept.length, "example")}, ${plural(counts.length, "label")}`;
    const left = leftOut(examples, this.isFile ? faults : []);
    find(".summary", this.root).textContent = missing ?? (kept.length ? `${summary}${left && ". "}${left}` : "");
    find(".faults", this.root).replaceChildren(...remarks.map((remark) => element("li", {}, remark)));
    this.#showCounts(counts);
    this.root.dispatchEvent(new CustomEvent("examples", { detail: counts.map(([label]) => label) }));
  }

  #showCounts(counts) {
    const most = Math.max(...counts.map(([, count]) => count));
    const rows = counts.map(([label, count]) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${(count / most) * 100}%`;
      const number = element("span", { class: "number" }, String(count));
      const cell = element("td", {}, number, element("span", { class: "track" }, bar));
      return element("tr", {}, element("th", { scope: "row" }, label), cell);
    });
    const table = find(".counts", this.root);
    table.hidden = !counts.length;
    find("tbody", table).replaceChildren(...rows);
  }

  #read() {
    if (!this.isFile) return fromLines(this.lines.value);
    const nothing = { examples: [], faults: [] };
    if (this.fault) return { ...nothing, missing: this.fault };
    if (!this.table) return nothing;
    const [text, label] = [this.columns.text.value, this.columns.label.value];
    const choose = "Choose which column has the texts and which the labels.";
    if (text === "" || label === "") return { ...nothing, missing: choose };
    if (text === label) return { ...nothing, missing: "Texts and labels must be two columns." };
    return fromRows(this.table.rows, Number(text), Number(label));
  }

  #switch() {
    for (const part of this.root.querySelectorAll("[data-source]")) {
      part.hidden = (part.dataset.source === "file") !== this.isFile;
    }
    this.show();
  }

  async #open(file) {
    this.table = null;
    this.fault = null;
    if (file) {
      try {
        this.#take(file.name, fromCsv(decoded(await file.arrayBuffer())));
      } catch (error) {
        this.fault = error.message;
      }
    }
    find("[data-part=columns]", this.root).hidden = !this.table;
    this.show();
  }

  #take(name, [columns, ...rows]) {
    if (!rows.length) throw new Error("This file has no rows below its first line, which names the columns.");
    this.fileName = name;
    this.table = { columns, rows };
    const guessed = guessColumns(columns, rows);
    for (const [part, select] of Object.entries(this.columns)) {
      const chosen = guessed[part] < 0 ? "" : String(guessed[part]);
      setOptions(select, columns.map((_, index) => String(index)), chosen, "Choose…");
      columns.forEach((column, index) => { select.options[index + 1].text = column.trim() || `Column ${index + 1}`; });
    }
  }
}

/** What is not learned of the examples that are given, in a sentence; nothing where all are. */
function leftOut(examples, faults) {
  const repeated = examples.length - once(examples).length;
  const wanting = `${plural(faults.length, "row")} ${faults.length === 1 ? "was" : "were"} empty and left out`;
  const again = `${repeated} ${repeated === 1 ? "was" : "were"} repeated`;
  const said = [faults.length && wanting, repeated && again].filter(Boolean).join(", ");
  return said && `${said}.`;
}
