// The token that a server may ask for. It stays in this tab and goes with it.

import { find, tieLabels } from "./dom.js";

const KEY = "abmll-token";
const dialog = find("#token-dialog");
tieLabels(dialog);
let asked = null; // one question for all requests that need the token at once

/** The token, or null. */
export const token = () => sessionStorage.getItem(KEY);

/** Ask for a token where ``used`` was refused. Whether there is another one to try. */
export function askToken(used, detail) {
  if (token() !== used) return Promise.resolve(Boolean(token()));
  asked ??= question(used ? detail : "").finally(() => { asked = null; });
  return asked;
}

function question(detail) {
  const field = find("input", dialog);
  find(".notice", dialog).textContent = detail;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  find("[data-cancel]", dialog).onclick = () => dialog.close("");
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const given = dialog.returnValue === "use" ? field.value.trim() : "";
      if (given) sessionStorage.setItem(KEY, given);
      resolve(Boolean(given));
    };
  });
}
