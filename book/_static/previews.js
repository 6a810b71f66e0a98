// Shows, beside a link, the copy of what it points to that the page carries in a <template>: on hover and on focus.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const copies = new Map([...document.querySelectorAll("template[data-preview]")].map((t) => [t.dataset.preview, t]));
  if (!copies.size) return;
  const tip = Object.assign(document.createElement("div"), { id: "preview", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let shown = null, timer = 0;

  function hide() {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  }

  async function show(link) {
    hide();
    shown = link;
    tip.replaceChildren(copies.get(link.getAttribute("href")).content.cloneNode(true));
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    place(link);
    await window.MathJax?.typesetPromise?.([tip]);
    if (shown === link) place(link);
  }

  function place(link) {
    const at = link.getBoundingClientRect(), room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const above = at.bottom + tip.offsetHeight + 8 > innerHeight && at.top > tip.offsetHeight + 8;
    tip.style.left = `${scrollX + Math.max(8, Math.min(at.left, room))}px`;
    tip.style.top = `${scrollY + (above ? at.top - tip.offsetHeight - 6 : at.bottom + 6)}px`;
  }

  const linkOf = (event) => {
    const link = event.target.closest?.("a[href]");
    return link && copies.has(link.getAttribute("href")) ? link : null;
  };
  const after = (what) => { clearTimeout(timer); timer = setTimeout(what, 200); };
  document.addEventListener("pointerover", (event) => {
    const link = event.pointerType === "mouse" && linkOf(event);
    if (link && link !== shown) after(() => show(link));
    else if (link || tip.contains(event.target)) clearTimeout(timer); // the pointer may go into the preview
    else if (shown && !shown.matches(":focus-visible")) after(hide);
    else if (!shown) clearTimeout(timer);
  });
  document.addEventListener("focusin", (event) => {
    const link = linkOf(event);
    if (link?.matches(":focus-visible")) show(link);
    else if (!tip.contains(event.target)) hide();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
});
