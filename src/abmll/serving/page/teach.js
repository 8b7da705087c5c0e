// Examples that are added to a task or taken out of it; the task learns at once what changed.

import { ofTask, write } from "./api.js";
import { taskAfter } from "./job.js";

/** Add examples. A text that is there with another label gets the new one. Returns the task that has learned them. */
export function add(context, examples, place) {
  return change(context, "PUT", { examples }, place);
}

/** Remove the examples with these texts. Returns the task without them. */
export function remove(context, texts, place) {
  return change(context, "DELETE", { texts }, place);
}

async function change(context, method, body, place) {
  const response = await write(method, ofTask(context.name, "/examples"), body);
  try {
    const task = await taskAfter(response, place);
    context.changed(task);
    return task;
  } catch (error) {
    context.reload(); // the examples may be there all the same, for the next version
    throw error;
  }
}
