// Instants as ages that grow: "12 s ago". The exact instant is in the title.

const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function keepAges(clock) {
  const show = (element) => {
    const at = Number(element.dataset.at);
    const text = age(clock.now() - at);
    if (element.textContent !== text) element.textContent = text;
    const instant = new Date(at * 1000);
    if (element.dateTime !== instant.toISOString()) {
      element.dateTime = instant.toISOString();
      element.title = instant.toLocaleString();
    }
  };
  const all = () => document.querySelectorAll("time[data-at]").forEach(show);
  document.addEventListener("aged", (event) => show(event.target));
  setInterval(all, 1000);
  all();
}

function age(seconds) {
  if (seconds < 1) return "just now";
  const [unitS, unit] = UNITS.find(([size]) => seconds >= size);
  return `${Math.floor(seconds / unitS)} ${unit} ago`;
}
