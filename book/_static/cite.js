// Buttons that copy what a reader cites. Without this file the same text stands there, to be copied by hand.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  // The address is known only where the book is read from a public machine.
  const local = !location.protocol.startsWith("http") || /^(localhost|127\.|\[::1\]|0\.0\.0\.0)/.test(location.hostname);

  function addressed(text, figure) {
    if (local) return text;
    const link = figure?.querySelector("a.permalink")?.href ?? location.href.replace(/#.*/, "");
    if (!text.startsWith("@")) return `${text.replace(/ https:\S+$/, "")} ${link}`;
    return `${text.replace(/,\n  url +=[^\n]*/, "").replace(/\n}$/, "")},\n  url = {${link}}\n}`;
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // a page of a file, or of a machine without https
      const area = Object.assign(document.createElement("textarea"), { value: text });
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) throw new Error("not copied");
    }
  }

  for (const details of document.querySelectorAll("details.citation")) {
    const said = Object.assign(document.createElement("span"), { className: "said" });
    said.setAttribute("role", "status");
    said.setAttribute("aria-live", "polite");
    const buttons = Object.assign(document.createElement("p"), { className: "copy" });
    for (const part of details.querySelectorAll("[data-copy]")) {
      part.textContent = addressed(part.textContent, details.closest("figure"));
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.textContent = `Copy ${part.dataset.copy}`;
      button.addEventListener("click", async () => {
        const name = part.dataset.copy;
        try {
          await copy(part.textContent);
          said.textContent = `${name} copied.`;
        } catch {
          getSelection().selectAllChildren(part);
          said.textContent = `${name} is selected: press Ctrl+C or ⌘C.`;
        }
      });
      buttons.append(button, " ");
    }
    buttons.append(said);
    details.append(buttons);
  }
});
