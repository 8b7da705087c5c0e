// Work of the server that takes a while: how far it is, and a button that ends it.

import { events, get, ofTask, Refused, request } from "./api.js";
import { announce, element } from "./dom.js";

const ENDED = new Set(["done", "failed", "cancelled"]);
const SECONDS_BETWEEN_LOOKS = 1;
const followed = new Set(); // ids of jobs that are on the page already
const WORDS = { learn: "Learning", update: "Updating", relearn: "Learning anew" };

/** A job that came to nothing: it failed, or was cancelled. */
export class Unfinished extends Error {}

/** Whether a part of the page shows this job. */
export const isFollowed = (id) => followed.has(id);

/** The task that a write led to: at once, or when its job is done, which ``place`` shows meanwhile. */
export async function taskAfter(response, place) {
  const answer = await response.json();
  if (response.status !== 202) return answer;
  const job = await follow(answer, place);
  return get(ofTask(job.task));
}

/** Show a job in ``place`` until it ends. Returns it; raises Unfinished where it failed or was cancelled. */
export async function follow(job, place) {
  const words = element("p", {});
  const bar = element("progress", { "aria-label": `${WORDS[job.kind] ?? "Working"} ${job.task}` });
  const cancel = element("button", { type: "button", class: "small" }, "Cancel");
  const notice = element("p", { class: "notice", role: "alert" });
  const shown = element("div", { class: "job" }, words, bar, cancel, notice);
  cancel.onclick = () => stop(job.id, notice);
  place.append(shown);
  followed.add(job.id);
  announce(`${WORDS[job.kind] ?? "Working"}.`);
  try {
    for await (const state of states(job)) {
      job = state;
      const known = job.total > 0;
      words.textContent = job.state === "waiting" ? "Waiting for its turn" : WORDS[job.kind] ?? "Working";
      if (known) words.textContent += `: ${job.done} of ${job.total}`;
      if (known) [bar.max, bar.value] = [job.total, job.done];
    }
  } finally {
    shown.remove();
    followed.delete(job.id);
  }
  if (job.state === "cancelled") {
    throw new Unfinished(`Cancelled. ${job.kind === "learn" ? "Nothing was learned." : "The task answers as before."}`);
  }
  if (job.state === "failed") throw new Unfinished(job.error ?? "It failed, and the server does not say why.");
  return job;
}

/** A job as it goes on: by its events, or by asking again and again where they break off. */
async function* states(job) {
  yield job;
  try {
    const response = await request("GET", `v1/jobs/${job.id}/events`, { headers: { Accept: "text/event-stream" } });
    for await (const { event, data } of events(response)) {
      if (event === "progress" && data) yield JSON.parse(data);
      if (event === "end") break;
    }
  } catch (error) {
    if (error instanceof Refused && error.status === 401) throw error;
  }
  for (;;) {
    const now = await get(`v1/jobs/${job.id}`);
    yield now;
    if (ENDED.has(now.state)) return;
    await new Promise((resolve) => setTimeout(resolve, SECONDS_BETWEEN_LOOKS * 1000));
  }
}

async function stop(id, notice) {
  try {
    await request("DELETE", `v1/jobs/${id}`);
  } catch (error) {
    notice.textContent = error.status === 409 ? "It was done already." : error.message;
  }
}
