// Search: an excerpt is prose, without formulas in TeX or code, and a result opens at what was sought.
"use strict";
if (typeof Search !== "undefined") {
  const whole = Search.htmlToText;
  Search.htmlToText = (text, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of page.querySelectorAll(".math")) part.replaceWith("…");
    for (const part of page.querySelectorAll("pre, .cell_input, .citation, .files, aside, template")) part.remove();
    return whole(page.documentElement.outerHTML, anchor);
  };
}
document.addEventListener("DOMContentLoaded", () => {
  const hits = [...document.querySelectorAll("article .highlighted")];
  const hit = hits.find((one) => !one.closest(".cell_input")) ?? hits[0];
  if (!hit || location.hash) return;
  hit.closest("details")?.setAttribute("open", "");
  hit.scrollIntoView({ block: "center" });
});
