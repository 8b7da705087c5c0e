// The server's interface: requests with the token, errors in one sentence, events of a job.

import { askToken, token } from "./token.js";

/** What the server refused, in its words; ``status`` is 0 where it could not be reached. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The address of a task, or of something of it. */
export const ofTask = (name, rest = "") => `v1/tasks/${encodeURIComponent(name)}${rest}`;

/** Ask the server. ``body`` becomes JSON. Raises Refused; asks for a token as often as the server wants another. */
export async function request(method, path, { body, headers = {} } = {}) {
  const sent = { Accept: "application/json", ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  for (;;) {
    const used = token();
    if (used) sent.Authorization = `Bearer ${used}`;
    let response;
    try {
      response = await fetch(path, { method, headers: sent, body: JSON.stringify(body), cache: "no-store" });
    } catch {
      throw new Refused(0, "The server cannot be reached. Nothing was lost: try again when it runs.");
    }
    if (response.ok) return response;
    const refused = new Refused(response.status, await reason(response));
    if (response.status !== 401 || !(await askToken(used, refused.message))) throw refused;
  }
}

/** The JSON that the server answers. */
export async function get(path) {
  return (await request("GET", path)).json();
}

const unanswered = new Map(); // keys of writes that the server may have taken without our hearing of it

/** A write that may take long: the server answers at once. Sent again after a lost answer, it is done once. */
export async function write(method, path, body) {
  const what = JSON.stringify([method, path, body]);
  if (!unanswered.has(what)) unanswered.set(what, newKey());
  const headers = { Prefer: "respond-async", "Idempotency-Key": unanswered.get(what) };
  try {
    const response = await request(method, path, { body, headers });
    unanswered.delete(what);
    return response;
  } catch (error) {
    if (error.status !== 0) unanswered.delete(what);
    throw error;
  }
}

/** Events of a stream (text/event-stream), as {event, data}. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const found = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, field, rest] = /^(event|data): ?(.*)$/.exec(line) ?? [];
        if (field === "event") found.event = rest;
        if (field === "data") found.data += rest;
      }
      yield found;
    }
  }
}

async function reason(response) {
  const type = response.headers.get("Content-Type") ?? "";
  let problem = null;
  if (type.includes("json")) problem = await response.json().catch(() => null);
  const wait = response.headers.get("Retry-After");
  const again = wait && /^\d+$/.test(wait) ? ` Try again in ${wait} s.` : "";
  const detail = problem?.detail ?? problem?.title;
  return (typeof detail === "string" ? detail : `The server answered ${response.status}.`) + again;
}

function newKey() {  // crypto.randomUUID is there over https and on this computer only
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
