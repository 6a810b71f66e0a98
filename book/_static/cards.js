// Claims on a phone: each card is short at first, and a button in it shows the paper's value, ours and the interval.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  for (const row of document.querySelectorAll(".claims tbody tr:not(.topic)")) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const fold = (brief) => {
      row.classList.toggle("brief", brief);
      button.textContent = brief ? "Show the numbers" : "Hide the numbers";
      button.setAttribute("aria-expanded", String(!brief));
    };
    const named = () => location.hash === `#${row.id}`;
    button.addEventListener("click", () => fold(!row.classList.contains("brief")));
    window.addEventListener("hashchange", () => named() && fold(false));
    fold(!named());
    row.lastElementChild.append(button);
  }
});
