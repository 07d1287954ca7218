// Charts of a device: stored health first, then each point as it comes.
import uPlot from "./vendor/uplot.js";

const SHOWN_S = 3600; // what is asked of the hub at first
const KEPT = 4000; // points of a series
const SHORTEST_S = 60; // of the time axis
const MIB = 1024 * 1024;

// Column numbers follow the hub's: `at` is 0.
const HOST = { temperature: 1, cpu: 2, daemon: 3 };
const MODEL = { p50: 1, p95: 2, p99: 3, rss: 4 };

const ms = (value) => `${value.toFixed(value < 10 ? 2 : 1)} ms`;
const mib = (value) => `${value.toFixed(0)} MiB`;
const celsius = (value) => `${value.toFixed(1)} °C`;

const KINDS = {
  latency: {
    unit: ms,
    axis: (value) => `${value} ms`,
    lines: (figure) =>
      ["p50", "p95", "p99"].map((label, index) => ({
        label, series: figure.dataset.series, column: MODEL[label], colour: index + 1,
      })),
  },
  temperature: {
    unit: celsius,
    axis: (value) => `${value} °C`,
    lines: () => [{ label: "Board", series: "host", column: HOST.temperature, colour: 4 }],
  },
  memory: {
    unit: mib,
    axis: (value) => `${value} MiB`,
    scale: 1 / MIB,
    lines: (_, series) => [
      { label: "Daemon", series: "host", column: HOST.daemon, colour: 1 },
      ...series.filter((name) => name.startsWith("model:")).map((name, index) => ({
        label: name.slice("model:".length), series: name, column: MODEL.rss, colour: 2 + (index % 3),
      })),
    ],
  },
};

export function openCharts() {
  const device = document.querySelector("[data-device]")?.dataset.device;
  const rows = new Map(); // series -> rows of [at, ...]
  const plots = new Map(); // figure -> plot
  if (device === undefined) return { append: () => {} };

  const draw = () => {
    for (const [figure, plot] of plots) if (!figure.isConnected) close(figure, plot);
    for (const figure of document.querySelectorAll("figure[data-chart]")) show(figure);
  };

  const close = (figure, plot) => {
    plot.watcher.disconnect();
    plot.chart.destroy();
    plots.delete(figure);
  };

  const show = (figure) => {
    const kind = KINDS[figure.dataset.chart];
    const lines = kind.lines(figure, [...rows.keys()].sort()).filter(({ series }) => rows.has(series));
    if (lines.length === 0) return;
    const data = columns(lines, rows, kind.scale ?? 1);
    if (data.slice(1).every((values) => values.every((value) => value === null))) {
      figure.querySelector(".plot").dataset.nothing = "Not measured on this device";
      return;
    }
    const name = lines.map(({ label }) => label).join();
    let plot = plots.get(figure);
    if (plot !== undefined && plot.name !== name) {
      close(figure, plot);
      plot = undefined;
    }
    if (plot === undefined) plots.set(figure, { name, ...make(figure, kind, lines, data) });
    else plot.chart.setData(data);
  };

  const append = (points) => {
    for (const [series, fresh] of Object.entries(points)) merge(rows, series, fresh);
    draw();
  };

  // colours come from the style sheet, which follows the system
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [figure, plot] of plots) close(figure, plot);
    draw();
  });

  const since = Number(document.body.dataset.at) - SHOWN_S;
  fetch(`/api/v1/devices/${device}/health?since=${since}&limit=600`)
    .then((response) => (response.ok ? response.json() : {}))
    .then((stored) => {
      for (const [series, { rows: old }] of Object.entries(stored)) merge(rows, series, old);
      draw();
    })
    .catch(() => {}); // the live points will do

  return { append };
}

// Rows stay in the order of their instants; a row that is there already is left out.
function merge(rows, series, fresh) {
  const known = rows.get(series) ?? [];
  const newest = known.at(-1)?.[0] ?? -Infinity;
  if (fresh.length && fresh[0][0] > newest) known.push(...fresh);
  else {
    const seen = new Set(known.map(([at]) => at.toFixed(2)));
    known.push(...fresh.filter(([at]) => !seen.has(at.toFixed(2))));
    known.sort((a, b) => a[0] - b[0]);
  }
  known.splice(0, known.length - KEPT);
  rows.set(series, known);
}

// uPlot's form: one array of instants, and one array per line with null where it has no point.
function columns(lines, rows, scale) {
  const tables = lines.map(({ series, column }) => [
    rows.get(series).map(([at]) => at),
    rows.get(series).map((row) => (row[column] == null ? null : row[column] * scale)),
  ]);
  return tables.length === 1 ? tables[0] : uPlot.join(tables, tables.map(() => [0, uPlot.NULL_EXPAND]));
}

function make(figure, kind, lines, data) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const grid = { stroke: colour("--line"), width: 1 };
  const axis = { stroke: colour("--quiet"), grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif" };
  const place = figure.querySelector(".plot");
  const size = () => ({ width: place.clientWidth, height: place.clientHeight });
  const legend = label(figure, lines, (line) => colour(`--series-${line.colour}`));
  const chart = new uPlot(
    {
      ...size(),
      legend: { show: false },
      cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: {
        x: { range: (_, low, high) => (high - low < SHORTEST_S ? [high - SHORTEST_S, high] : [low, high]) },
        y: { range: (_, low, high) => around(low, high) },
      },
      axes: [
        { ...axis, space: 64, size: 26, values: (_, splits) => splits.map((at) => clock(at, splits)) },
        { ...axis, size: 62, space: 26, values: (_, splits) => splits.map((v) => kind.axis(+v.toFixed(3))) },
      ],
      series: [
        {},
        ...lines.map((line) => ({
          label: line.label,
          stroke: colour(`--series-${line.colour}`),
          width: 1.75,
          spanGaps: true,
          points: { show: data[0].length < 40, size: 4, fill: colour(`--series-${line.colour}`) },
        })),
      ],
      hooks: { setCursor: [(plot) => legend(plot, kind)] },
    },
    data,
    place,
  );
  const watcher = new ResizeObserver(() => chart.setSize(size()));
  watcher.observe(place);
  return { chart, watcher };
}

// The legend names the lines; under the pointer it tells their values there.
function label(figure, lines, colourOf) {
  let list = figure.querySelector(".legend-line");
  if (list === null) {
    list = document.createElement("span");
    list.className = "legend-line";
    figure.querySelector("figcaption").append(list);
  }
  list.replaceChildren(
    ...lines.map((line) => {
      const item = document.createElement("span");
      item.style.setProperty("--line", colourOf(line));
      return item;
    }),
  );
  const say = (plot, kind) => {
    const at = plot?.cursor.idx;
    lines.forEach((line, index) => {
      const value = at == null ? null : plot.data[index + 1][at];
      list.children[index].textContent = value == null ? line.label : `${line.label} ${kind.unit(value)}`;
    });
  };
  say();
  return say;
}

// Hours and minutes; seconds where the ticks are closer than a minute.
function clock(at, splits) {
  const close = splits.length > 1 && splits[1] - splits[0] < 60;
  return new Date(at * 1000).toLocaleTimeString([], {
    hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(close && { second: "2-digit" }),
  });
}

// A flat line is shown as one, not blown up to noise.
function around(low, high) {
  if (low == null) return [0, 1];
  const margin = Math.max((high - low) * 0.1, Math.abs(high) * 0.04, 0.05);
  return [Math.max(0, low - margin), high + margin];
}
