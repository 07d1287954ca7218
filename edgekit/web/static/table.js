// The device table: what is typed, chosen or clicked becomes the address, and the address the view.
import { announce } from "./live.js";

const TYPING_MS = 250;
const ANNOUNCE_MS = 800;

export function openTable(live) {
  const form = document.getElementById("filters");
  if (form === null) return;
  const body = document.querySelector('[data-rows="devices"]');
  const note = document.getElementById("held");
  const matches = document.getElementById("matches");
  let typing = 0;
  let announcing = 0;

  const go = (address, remember) => {
    history[remember ? "pushState" : "replaceState"](null, "", address);
    live.open(address);
    clearTimeout(announcing);
    announcing = setTimeout(() => announce(matches.textContent), ANNOUNCE_MS);
  };

  const filter = (remember) => {
    clearTimeout(typing);
    const asked = new URLSearchParams(new FormData(form));
    for (const [name, value] of [...asked]) if (value === "") asked.delete(name);
    for (const name of ["sort", "order"]) {
      const kept = new URLSearchParams(location.search).get(name);
      if (kept !== null) asked.set(name, kept);
    }
    go(asked.size ? `/devices?${asked}` : "/devices", remember);
  };

  form.addEventListener("input", (event) => {
    clearTimeout(typing);
    if (event.target.tagName === "SELECT") filter(true);
    else typing = setTimeout(() => filter(false), TYPING_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    filter(true);
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-go]");
    if (link === null || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(link.getAttribute("href"), true);
  });
  addEventListener("popstate", () => {
    const asked = new URLSearchParams(location.search);
    for (const field of form.elements) if (field.name) field.value = asked.get(field.name) ?? "";
    live.open(location.pathname + location.search);
  });

  // nobody wants to click on a row that has just moved away
  let over = false;
  const hold = () => {
    const held = over || body.contains(document.activeElement);
    note.hidden = !held;
    live.hold(held);
  };
  body.addEventListener("pointerenter", (event) => {
    over = event.pointerType === "mouse";
    hold();
  });
  body.addEventListener("pointerleave", () => {
    over = false;
    hold();
  });
  body.addEventListener("focusin", hold);
  body.addEventListener("focusout", () => setTimeout(hold));
}
