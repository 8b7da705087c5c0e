// The list of tasks. A server may have very many: they come a hundred at a time, and one is opened by its name too.

import { get } from "./api.js";
import { element, find } from "./dom.js";

const AT_ONCE = 100;

/** The address of a task's view within the page. */
export const addressOf = (name, part = "ask") => `#task/${encodeURIComponent(name)}/${part}`;

export class TaskList {
  constructor(root) {
    this.root = root;
    this.number = AT_ONCE; // tasks that are wanted
    this.asked = 0; // lists that were asked for; an older one that comes late is dropped
    this.current = null;
    this.more = find("[data-part=more]", root);
    this.more.onclick = () => {
      this.number += AT_ONCE;
      this.load();
    };
    this.byName = find("form", root);
    this.byName.onsubmit = (event) => {
      event.preventDefault();
      const name = find("input", this.byName).value.trim();
      if (name) location.hash = addressOf(name);
    };
  }

  /** Ask for the tasks again. Says so beside the list where that fails. */
  async load() {
    const notice = find("[role=alert]", this.root);
    notice.textContent = "";
    const mine = ++this.asked;
    try {
      const { tasks, next } = await this.#read();
      if (mine === this.asked) this.#show(tasks, next);
    } catch (error) {
      notice.textContent = error.message;
    }
  }

  async #read() {
    const tasks = [];
    let next = "";
    while (next !== null && tasks.length < this.number) {
      const page = await get(`v1/tasks?limit=${AT_ONCE}${next && `&after=${encodeURIComponent(next)}`}`);
      tasks.push(...page.tasks);
      next = page.next;
    }
    return { tasks, next };
  }

  #show(tasks, next) {
    const items = tasks.map(({ name, state }) => {
      const shown = element("span", { class: "state", "data-state": state }, state);
      const link = element("a", { href: addressOf(name) }, element("span", {}, name), shown);
      return element("li", { "data-name": name }, link);
    });
    find("ul", this.root).replaceChildren(...(items.length ? items : [element("li", { class: "none" }, "None yet.")]));
    this.more.hidden = this.byName.hidden = next === null;
    this.mark(this.current);
  }

  /** Mark the task that is open; null for none. */
  mark(name) {
    this.current = name;
    for (const item of this.root.querySelectorAll("[data-name]")) {
      const link = find("a", item);
      if (item.dataset.name === name) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  /** Show how a task stands now. */
  update(task) {
    const state = find(`[data-name="${CSS.escape(task.name)}"] .state`, this.root);
    if (state) state.textContent = state.dataset.state = task.state;
  }
}
