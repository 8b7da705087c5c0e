// The page: a list of tasks, and beside it the view that the address names.
//
//   #                    what this is
//   #new                 a new task
//   #task/NAME/PART      a task, and one of its parts (task.js)

import { get } from "./api.js";
import { attempt, element, find, focusOn, fromTemplate } from "./dom.js";
import { newTask } from "./new_task.js";
import { SECTIONS, TaskView } from "./task.js";

const views = new Map(); // of tasks by their names: what was typed into them stays
let server = { adapters: false };
let draft = null; // the view of a new task, until it is learned
let listing = 0; // lists of tasks that were asked for
let shown = null; // the view that is on the page

async function start() {
  window.addEventListener("hashchange", route);
  const list = find(".tasks");
  await attempt(list, async () => {
    server = await get("v1/server");
    find("#server-facts").textContent = [server.model, server.device, server.tenant === "default" ? "" : server.tenant].filter(Boolean).join(" · ");
    await listTasks();
  });
  route();
}

async function listTasks() {
  const mine = ++listing;
  const tasks = [];
  for (let after = ""; after !== null;) {
    const page = await get(`v1/tasks?limit=100${after && `&after=${encodeURIComponent(after)}`}`);
    tasks.push(...page.tasks);
    after = page.next;
  }
  if (mine !== listing) return; // a newer list is on its way
  const items = tasks.map((task) => {
    const state = element("span", { class: "state", "data-state": task.state }, task.state);
    const link = element("a", { href: `#task/${encodeURIComponent(task.name)}/ask` }, element("span", { class: "name" }, task.name), state);
    return element("li", { "data-name": task.name }, link);
  });
  find("#task-list").replaceChildren(...(items.length ? items : [element("li", { class: "none" }, "None yet.")]));
  markCurrent();
}

async function refresh() {
  const notice = find("#tasks-notice");
  notice.textContent = "";
  await listTasks().catch((error) => { notice.textContent = error.message; });
}

function route() {
  if (location.hash === "#main") return;
  const [kind, name = "", part = ""] = location.hash.slice(1).split("/").map(decoded);
  if (kind === "task" && name) openTask(name, Object.hasOwn(SECTIONS, part) ? part : "ask");
  else if (kind === "new") open(draft ??= newTask(server, { begun: refresh, learned }), "New task");
  else open(fromTemplate("home"), "ABMLL");
  document.body.dataset.view = kind || "home";
  markCurrent();
}

function decoded(word) {
  try {
    return decodeURIComponent(word);
  } catch {
    return word;
  }
}

function open(view, title) {
  document.title = title === "ABMLL" ? title : `${title} · ABMLL`;
  const isNew = view !== shown;
  const isFirst = shown === null;
  shown = view;
  if (isNew) find("#main").replaceChildren(view);
  if (isNew && !isFirst) focusOn(find("h1", view));
  return isNew && !isFirst;
}

function openTask(name, part) {
  if (!views.has(name)) views.set(name, new TaskView(name, { changed: showState, deleted: () => forget(name) }));
  const view = views.get(name);
  const isNew = open(view.root, name);
  view.open(part, isNew);
}

/** A task was learned: its form has done its work, and its view is shown unless the user went elsewhere. */
function learned(task) {
  const wasShown = shown === draft;
  draft = null;
  views.delete(task.name);
  refresh();
  if (wasShown) location.hash = `#task/${encodeURIComponent(task.name)}/ask`;
}

function forget(name) {
  views.delete(name);
  refresh();
  location.hash = "#";
}

/** Show in the list how a task stands. */
function showState(task) {
  const state = find(`#task-list [data-name="${CSS.escape(task.name)}"] .state`);
  if (!state) return;
  state.textContent = task.state;
  state.dataset.state = task.state;
}

function markCurrent() {
  const [kind, name = ""] = location.hash.slice(1).split("/").map(decoded);
  for (const item of document.querySelectorAll("#task-list [data-name]")) {
    const link = find("a", item);
    if (kind === "task" && item.dataset.name === name) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

start();
