// The page: a list of tasks, and beside it the view that the address names.
//
//   #                    what this is
//   #new                 a new task
//   #task/NAME/PART      a task, and one of its parts (task.js)

import { get } from "./api.js";
import { attempt, find, focusOn, fromTemplate } from "./dom.js";
import { newTask } from "./new_task.js";
import { SECTIONS, TaskView } from "./task.js";
import { addressOf, TaskList } from "./task_list.js";

const list = new TaskList(find(".tasks"));
const views = new Map(); // of tasks by their names: what was typed into them stays
let server = { adapters: false };
let draft = null; // the view of a new task, until it is learned
let shown = null; // the view that is on the page

async function start() {
  window.addEventListener("hashchange", route);
  await attempt(find(".tasks"), async () => {
    server = await get("v1/server");
    const facts = [server.model, server.device, server.tenant === "default" ? "" : server.tenant];
    find("#server-facts").textContent = facts.filter(Boolean).join(" · ");
    await list.load();
  });
  route();
}

function route() {
  if (location.hash === "#main") return; // the link that skips the list
  const [kind, name = "", part = ""] = location.hash.slice(1).split("/").map(decoded);
  const isTask = kind === "task" && name !== "";
  if (isTask) openTask(name, Object.hasOwn(SECTIONS, part) ? part : "ask");
  else if (kind === "new") open(draft ??= newTask(server, { begun: () => list.load(), learned }), "New task · ABMLL");
  else open(fromTemplate("home"), "ABMLL");
  document.body.dataset.view = isTask || kind === "new" ? kind : "home";
  list.mark(isTask ? name : null);
}

function decoded(word) {
  try {
    return decodeURIComponent(word);
  } catch {
    return word; // typed by hand, with a % of its own
  }
}

/** Put a view on the page, with the focus on its heading unless it is the first one. */
function open(view, title) {
  document.title = title;
  if (view === shown) return;
  find("#main").replaceChildren(view);
  if (shown) focusOn(find("h1", view));
  shown = view;
}

function openTask(name, part) {
  const hooks = { changed: (task) => list.update(task), deleted: () => forget(name) };
  if (!views.has(name)) views.set(name, new TaskView(name, hooks));
  open(views.get(name).root, `${name} · ABMLL`);
  views.get(name).open(part);
}

/** A task was learned: its form has done its work, and its view is shown unless the user went elsewhere. */
function learned(task) {
  const wasShown = shown === draft;
  draft = null;
  views.delete(task.name);
  list.load();
  if (wasShown) location.hash = addressOf(task.name);
}

function forget(name) {
  views.delete(name);
  list.load();
  location.hash = "";
}

start();
