// Search: an excerpt is prose, without formulas in TeX or code, and a result opens at what was sought.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  if (document.getElementById("search-results")) {
    const whole = Search.htmlToText;
    const dropped = "pre, nav, aside, template, summary, .bd-header-article, .cell_input, .citation, .files, #jb-print-docs-body";
    Search.htmlToText = (text, anchor) => {
      const page = new DOMParser().parseFromString(text, "text/html");
      for (const part of page.querySelectorAll(".math")) part.replaceWith("…");
      for (const part of page.querySelectorAll(dropped)) part.remove();
      return whole(page.documentElement.outerHTML, anchor);
    };
  }
  // Sphinx marks the words that were sought, 10 ms later, but not where the theme loads the search into every page.
  if (!document.getElementById("search-results")) SphinxHighlight.highlightSearchWords();
  setTimeout(() => {
    const hits = [...document.querySelectorAll("article .highlighted")];
    const hit = hits.find((one) => !one.closest(".cell_input")) ?? hits[0];
    if (!hit || document.getElementById(decodeURIComponent(location.hash.slice(1)))) return;
    hit.closest("details")?.setAttribute("open", "");
    hit.closest("tr.brief")?.querySelector("button").click();
    hit.scrollIntoView({ block: "center" });
  }, 50);
});
