// Examples out of what a user pastes or uploads. Nothing here touches the document.

// Usual names of columns, as abmll.tasks.columns has them; those of a first list are taken before those of the second.
const TEXT_NAMES = [["text", "input"], ["sentence", "question", "message", "body", "content", "review", "comment",
  "description", "document", "query"]];
const LABEL_NAMES = [["label", "output"], ["labels", "class", "category", "categories", "target", "tag", "tags",
  "intent", "topic", "sentiment", "answer"]];

const NAMED = { "\t": "tab", ",": "comma", ";": "semicolon" };
const MOST_LABELS = 200; // of a task
const WORDS = 3; // in texts, on average, where a column is known by nothing else

/** Examples of pasted lines, ``text<TAB, comma or semicolon>label``, and in one sentence each what is wrong. */
export function fromLines(pasted) {
  const separator = separatorOfLines(pasted.split(/\r?\n/).filter((line) => line.trim()));
  const named = NAMED[separator];
  const examples = [];
  const faults = [];
  pasted.split(/\r?\n/).forEach((line, index) => {
    if (!line.trim()) return;
    const place = lastSeparator(line, separator);
    const text = unquoted(line.slice(0, Math.max(place, 0)));
    const label = unquoted(line.slice(place + 1));
    const where = `Line ${index + 1}`;
    if (place < 0) faults.push(`${where} has no label: put a ${named} and the label after its text.`);
    else if (!text) faults.push(`${where} has no text before its label.`);
    else if (!label) faults.push(`${where} has no label after the last ${named}.`);
    else if (examples.length || faults.length || !isHeading(text, label)) examples.push({ text, label });
  });
  return { examples, faults };
}

/** What stands before the labels: a tab where there is one; else what more lines have, or makes fewer labels of them. */
function separatorOfLines(lines) {
  if (lines.some((line) => line.includes("\t"))) return "\t";
  const [comma, semicolon] = [",", ";"].map((separator) => {
    const labels = lines.map((line) => [line, lastSeparator(line, separator)]).filter(([, place]) => place >= 0)
      .map(([line, place]) => unquoted(line.slice(place + 1)));
    return { lines: labels.length, labels: new Set(labels).size };
  });
  const isMore = semicolon.lines > comma.lines;
  return isMore || (semicolon.lines === comma.lines && semicolon.labels < comma.labels) ? ";" : ",";
}

/** Where a line's label begins: at its last separator, which is not the one inside of a label in quotes. */
function lastSeparator(line, separator) {
  const quoted = /"(?:[^"]|"")*"\s*$/.exec(line);
  return line.slice(0, quoted ? quoted.index : undefined).lastIndexOf(separator);
}

function isHeading(text, label) {
  return TEXT_NAMES.flat().includes(text.toLowerCase()) && LABEL_NAMES.flat().includes(label.toLowerCase());
}

function unquoted(cell) {
  const bare = cell.trim();
  return /^".*"$/s.test(bare) && bare.length > 1 ? bare.slice(1, -1).replaceAll('""', '"').trim() : bare;
}

/** The rows of a CSV or TSV (RFC 4180: quotes, and line breaks within them), as lists of cells. */
export function fromCsv(given) {
  const [first, said] = /^sep=([,;|\t])(?:\r?\n|$)/i.exec(given) ?? ["", null]; // as Excel writes it
  const text = given.slice(first.length);
  const separator = said ?? separatorOf(text);
  const rows = [];
  let row = [];
  let cell = "";
  let isQuoted = false;
  const end = () => { row.push(cell); cell = ""; };
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (isQuoted) {
      if (letter !== '"') cell += letter;
      else if (text[at + 1] === '"') cell += text[++at];
      else isQuoted = false;
    } else if (letter === '"' && cell === "") isQuoted = true;
    else if (letter === separator) end();
    else if (letter === "\n" || letter === "\r") {
      if (letter === "\r" && text[at + 1] === "\n") at++;
      end();
      rows.push(row);
      row = [];
    } else cell += letter;
  }
  if (isQuoted) throw new Error("A quotation mark in this file is never closed. Save it as CSV again.");
  if (cell || row.length) { end(); rows.push(row); }
  return rows.filter((cells) => cells.length > 1 || cells[0].trim());
}

/** What stands between the cells: the one of tab, comma and semicolon that the first line has most of. */
function separatorOf(text) {
  const heading = text.slice(0, text.search(/[\r\n]|$/)).replace(/"[^"]*"/g, "");
  const number = (separator) => heading.split(separator).length;
  return [",", ";"].reduce((best, one) => (number(one) > number(best) ? one : best), "\t");
}

/** The text of a file's bytes. Raises Error where they are not UTF-8 text. */
export function decoded(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return text;
  } catch { /* said below */ }
  throw new Error("This file is not text in UTF-8. In a spreadsheet, save it as “CSV UTF-8”.");
}

/** Which columns have the texts and the labels: two indices, -1 where more than one could be meant.

By their usual names; else by what is in ``rows``, as abmll.tasks.columns does it. */
export function guessColumns(columns, rows = []) {
  const cells = (index) => rows.map((row) => (row[index] ?? "").trim()).filter(Boolean);
  const only = (taken, canBe) => {
    const found = [...columns.keys()].filter((index) => index !== taken && canBe(cells(index)));
    return found.length === 1 ? found[0] : -1;
  };
  let label = byName(columns, LABEL_NAMES, -1);
  let text = byName(columns, TEXT_NAMES, label);
  if (text < 0) text = columns.length === 2 && label >= 0 ? 1 - label : only(label, canBeTexts);
  if (label < 0 && text >= 0) label = columns.length === 2 ? 1 - text : only(text, canBeLabels);
  return { text, label };
}

/** Mostly different texts of several words. */
function canBeTexts(cells) {
  const words = cells.reduce((sum, cell) => sum + cell.split(/\s+/).length, 0);
  return cells.length > 0 && new Set(cells).size > cells.length / 2 && words >= WORDS * cells.length;
}

/** At least two different cells, each of them twice on average, and not too many for a task. */
function canBeLabels(cells) {
  const { size } = new Set(cells);
  return size >= 2 && size <= Math.min(MOST_LABELS, cells.length / 2);
}

function byName(columns, names, taken) {
  for (const group of names) {
    const found = [...columns.keys()]
      .filter((index) => index !== taken && group.includes(columns[index].trim().toLowerCase()));
    if (found.length) return found.length === 1 ? found[0] : -1;
  }
  return -1;
}

/** Examples of a table's rows, and what is wrong with rows of it. */
export function fromRows(rows, text, label) {
  const examples = [];
  const faults = [];
  rows.forEach((cells, index) => {
    const example = { text: (cells[text] ?? "").trim(), label: (cells[label] ?? "").trim() };
    if (example.text && example.label) examples.push(example);
    else faults.push(`Row ${index + 1} has no ${example.text ? "label" : "text"}: it is left out.`);
  });
  return { examples, faults };
}

/** Each text once, with its last label. */
export function once(examples) {
  const labels = new Map(examples.map(({ text, label }) => [text, label]));
  return [...labels].map(([text, label]) => ({ text, label }));
}

/** How many examples each label has, the most frequent first. */
export function countLabels(examples) {
  const counts = new Map();
  for (const { label } of examples) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].sort(([a, many], [b, more]) => more - many || (a < b ? -1 : 1));
}

/** Texts that are there with more than one label. */
export function contradictions(examples) {
  const labels = new Map();
  const found = new Set();
  for (const { text, label } of examples) {
    if (labels.has(text) && labels.get(text) !== label) found.add(text);
    labels.set(text, label);
  }
  return [...found];
}

/** A CSV of rows of cells. A cell that a spreadsheet would take for a formula is quoted with an apostrophe. */
export function toCsv(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}
