// Examples that are added to a task or taken out of it; the task learns at once what changed.

import { ofTask, write } from "./api.js";
import { taskAfter } from "./job.js";

/** Add examples. A text that is there with another label gets the new one. Returns the task that has learned them. */
export async function add(name, examples, place) {
  return taskAfter(await write("PUT", ofTask(name, "/examples"), { examples }), place);
}

/** Remove the examples with these texts. Returns the task without them. */
export async function remove(name, texts, place) {
  return taskAfter(await write("DELETE", ofTask(name, "/examples"), { texts }), place);
}
