// One task: what it is and how it stands, and its parts, of which one is shown at a time.

import { get, ofTask, write } from "./api.js";
import { ask } from "./ask.js";
import { announce, attempt, element, find, fromTemplate, plural } from "./dom.js";
import { examples } from "./examples.js";
import { files } from "./files.js";
import { follow, isFollowed, taskAfter } from "./job.js";
import { quality } from "./quality.js";
import { suggest } from "./suggest.js";
import { addressOf } from "./task_list.js";

export const SECTIONS = { ask, suggest, examples, quality, files };
const FIRST_LOOK_MS = 2000; // until one looks again at what the server still measures, and how that grows
const LAST_LOOK_MS = 30_000;
const GROWTH = 1.3;

/** A task's view. Its parts stay as they are while another view is shown, with all that was typed into them. */
export class TaskView {
  constructor(name, { changed, deleted }) {
    this.name = name;
    this.root = fromTemplate("task");
    this.hooks = { changed, deleted };
    this.sections = {};
    this.task = null;
    find("h1", this.root).textContent = name;
    for (const link of this.root.querySelectorAll("[data-to]")) {
      link.href = addressOf(name, link.dataset.to);
    }
    const relearn = find("[data-part=relearn]", this.root);
    find("button", relearn).onclick = () => attempt(relearn, async () => {
      const response = await write("POST", ofTask(name, "/relearn"), {});
      this.apply(await taskAfter(response, find("[data-slot=job]", this.root)));
    }, find("[data-part=trouble]", this.root));
  }

  /** Show a part, of the task as it is now. */
  async open(section) {
    this.section = section;
    this.pause = FIRST_LOOK_MS;
    for (const link of this.root.querySelectorAll("[data-to]")) {
      if (link.dataset.to === section) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    await this.load();
  }

  async load() {
    const trouble = find("[data-part=trouble]", this.root);
    try {
      this.apply(await get(ofTask(this.name)));
    } catch (error) {
      trouble.textContent = error.message;
    }
  }

  /** Show the task as the server says it is. */
  apply(task) {
    this.task = task;
    this.#head(task);
    this.hooks.changed(task);
    this.sections[this.section] ??= SECTIONS[this.section](this.#context());
    const place = find("[data-slot=section]", this.root);
    const { root } = this.sections[this.section];
    if (place.firstElementChild !== root) place.replaceChildren(root);
    for (const section of Object.values(this.sections)) section.update?.(task);
    this.#wait(task);
  }

  /** What the parts need of the task. */
  #context() {
    const view = this;
    return {
      name: this.name,
      get task() { return view.task; },
      changed: (task) => this.apply(task),
      reload: () => this.load(),
      deleted: this.hooks.deleted,
    };
  }

  #head(task) {
    const state = find(".state", this.root);
    state.textContent = task.state;
    state.dataset.state = task.state;
    const facts = [plural(task.num_examples, "example"), task.version ? `version ${task.version}` : null,
      task.how === "full" ? "adapters" : "head"];
    find("[data-part=facts]", this.root).textContent = facts.filter(Boolean).join(" · ");
    const labels = [...new Set([...task.labels, ...Object.keys(task.counts)])]; // those not learned yet too
    const count = (label) => element("li", {}, label, " ", element("b", {}, String(task.counts[label] ?? 0)));
    find("[data-part=counts]", this.root).replaceChildren(...labels.map(count));
    find("[data-part=trouble]", this.root).textContent = troubleOf(task);
    find("[data-part=relearn]", this.root).hidden = !troubleOf(task);
  }

  /** Follow the task's job, or look again after a while at what is not known yet. */
  #wait(task) {
    clearTimeout(this.timer);
    if (task.job && task.job !== this.ended && !isFollowed(task.job)) this.#follow(task.job);
    else if (task.job || task.quality || task.how === "full" || !this.root.isConnected) this.pause = FIRST_LOOK_MS;
    else {
      this.timer = setTimeout(() => this.root.isConnected && this.load(), this.pause);
      this.pause = Math.min(GROWTH * this.pause, LAST_LOOK_MS);
    }
  }

  async #follow(id) {
    let trouble = "";
    try {
      await follow(await get(`v1/jobs/${id}`), find("[data-slot=job]", this.root));
      announce(`${this.name} is learned.`);
    } catch (error) {
      trouble = error.message;
    }
    this.ended = id;
    await this.load();
    if (trouble) find("[data-part=trouble]", this.root).textContent = trouble;
  }
}

function troubleOf({ state, error }) {
  if (state === "failed") return error ?? "Learning failed.";
  if (state === "damaged") return error ?? "A file of this task is damaged. Learn it anew from its examples.";
  if (state === "ready" && error) return `The last change is not learned: ${error}`;
  return "";
}
