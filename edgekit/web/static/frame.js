// Applies frames to the page: cells by their keys, rows of lists by their ids.
// An element that the hub writes to is never one that a person writes to.

const cells = new Map(); // key -> elements that show it

const PARTS = {
  text: (element, value) => { if (element.textContent !== value) element.textContent = value; },
  tone: (element, value) => { element.dataset.tone = value; },
  href: (element, value) => element.setAttribute("href", value),
  sort: (element, value) => element.setAttribute("aria-sort", value),
  current: (element, value) => element.setAttribute("aria-current", value),
  share: (element, value) => { element.value = value; },
  x: (element, value) => element.setAttribute("x", `${100 * value}%`),
  width: (element, value) => element.setAttribute("width", `${100 * value}%`),
  show: (element, value) => { element.hidden = !value; },
  at: (element, value) => {
    element.dataset.at = value;
    element.dispatchEvent(new Event("aged", { bubbles: true }));
  },
};

export function adopt(root) {
  for (const element of root.querySelectorAll("[data-cell]")) {
    const key = element.dataset.cell;
    if (!cells.has(key)) cells.set(key, new Set());
    cells.get(key).add(element);
  }
}

function release(root) {
  for (const element of root.querySelectorAll("[data-cell]")) {
    const shown = cells.get(element.dataset.cell);
    shown?.delete(element);
    if (shown?.size === 0) cells.delete(element.dataset.cell);
  }
}

export function apply(message) {
  for (const [name, ids] of Object.entries(message.rows ?? {})) arrange(name, ids, !message.whole);
  for (const [key, value] of Object.entries(message.set ?? {})) {
    for (const element of cells.get(key) ?? []) {
      if (typeof value === "string") PARTS.text(element, value);
      else for (const [part, content] of Object.entries(value)) PARTS[part]?.(element, content);
    }
  }
}

// Puts a list's rows into the order of `ids`, moving as few as it can and keeping the focus.
function arrange(name, ids, fresh) {
  const list = document.querySelector(`[data-rows="${name}"]`);
  if (list === null) return;
  const focused = document.activeElement;
  const known = new Map([...list.children].map((row) => [row.dataset.row, row]));
  const wanted = new Set(ids);
  for (const [id, row] of known) {
    if (!wanted.has(id)) {
      release(row);
      row.remove();
    }
  }
  let at = list.firstElementChild;
  for (const id of ids) {
    let row = known.get(id);
    if (row === undefined) {
      row = make(name, id);
      row.classList.toggle("fresh", fresh);
    }
    if (row === at) at = at.nextElementSibling;
    else list.insertBefore(row, at);
  }
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function make(name, id) {
  const row = document.getElementById(`row-${name}`).content.firstElementChild.cloneNode(true);
  for (const element of [row, ...row.querySelectorAll("*")]) {
    for (const field of ["cell", "row", "series"]) {
      if (element.dataset[field]?.startsWith("*")) {
        element.dataset[field] = id + element.dataset[field].slice(1);
      }
    }
  }
  adopt(row);
  return row;
}
