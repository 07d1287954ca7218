// Sorts a table by the column whose heading is pressed; without this script the tables are as sorted.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent;
  const compare = (a, b) => {
    const numbers = [Number(a), Number(b)];
    return numbers.every(Number.isFinite) ? numbers[0] - numbers[1] : a.localeCompare(b);
  };
  const isEmpty = (row, at) => value(row, at) === "";
  Array.from(table.tHead.rows[0].cells).forEach((heading, at) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => isEmpty(a, at) - isEmpty(b, at)
        || compare(value(a, at), value(b, at)) * (up ? 1 : -1);
      body.append(...Array.from(body.rows).sort(order));
    });
  });
}
