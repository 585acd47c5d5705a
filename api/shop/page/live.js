// The live panel: what the pipeline does, as small charts of the last three minutes.

import { $, count, h, s } from "./dom.js";
import { Poll } from "./poll.js";

const KEPT_MS = 180000;
// A chart is at least so wide, and grows with what is known.
const LEAST_MS = 60000;
// Where nobody has looked for so long there is no line.
const GAP_MS = 5000;
const WIDTH = 300;
const HEIGHT = 86;

const CHARTS = [
  { title: "Events read", of: (one) => one.events_per_second, unit: "/s" },
  {
    title: "Freshness: event to saved list",
    of: (one) => one.freshness_p50_ms,
    second: (one) => one.freshness_p99_ms,
    unit: "ms",
    note: "median; dotted: p99",
  },
  { title: "Lag: messages not yet read", of: (one) => one.lag, unit: "" },
  { title: "Lookups", of: (one) => one.lookups_per_second, unit: "/s" },
  { title: "Catalogue changes", of: (one) => one.catalogue_per_second, unit: "/s" },
  { title: "Products", of: (one) => one.products, unit: "", flat: true },
];

const STATES = {
  connected: "connected to Flink",
  not_configured: "not connected: no JobManager is named",
  not_reachable: "not connected: the JobManager does not answer",
  no_job: "connected to Flink, and no job runs",
};
const NOTES = {
  not_configured:
    "Set RECOMMENDER_FLINK_URL (such as http://jobmanager:8081) for the service, and the job's figures appear here. The catalogue's are the service's own.",
  not_reachable: "The address in RECOMMENDER_FLINK_URL is asked again each second.",
  no_job: "Figures appear as soon as one does.",
};

let jobs = [];
let shelf = [];
let newest = 0;
let cards = [];

const poll = new Poll(
  () => `/shop/live?since=${newest}`,
  take,
  (error) => {
    if (error) {
      $("live-state").className = "state";
      $("live-state").textContent = `no answer: ${error.message}`;
    }
  },
);

export function startLive() {
  cards = CHARTS.map(makeCard);
  $("charts").replaceChildren(...cards.map((one) => one.element));
}

/** Ask while the panel is looked at. */
export function watchLive(open) {
  if (open) poll.start();
  else poll.stop();
}

function take(found) {
  const old = found.now - KEPT_MS;
  // Of several workers each takes samples of its own; they meet here by their times.
  const known = new Set(jobs.map((one) => one.at));
  jobs = [...jobs, ...found.samples.filter((one) => !known.has(one.at))]
    .filter((one) => one.at > old)
    .sort((a, b) => a.at - b.at);
  newest = jobs.at(-1)?.at ?? 0;
  const last = shelf.at(-1);
  const gained = last ? found.catalogue_changes - last.changes : 0;
  shelf = [
    ...shelf,
    {
      at: found.now,
      changes: found.catalogue_changes,
      products: found.catalogue_products,
      // Another worker began to count at another time; its number is no rate.
      catalogue_per_second:
        last && gained >= 0 && found.now > last.at ? (1000 * gained) / (found.now - last.at) : null,
    },
  ].filter((one) => one.at > old);
  $("live-state").className = found.flink === "connected" ? "state on" : "state";
  $("live-state").textContent = STATES[found.flink];
  const end = jobs.at(-1);
  $("live-note").textContent =
    NOTES[found.flink] ??
    (end ? `${count(end.events)} events since the job began, ${count(end.dead_letters)} dead letters, writes p99 ${count(end.write_p99_ms)} ms.` : "");
  const connected = found.flink === "connected";
  for (const [at, card] of cards.entries()) {
    const samples = at < 4 ? (connected ? jobs : []) : shelf;
    paint(card, CHARTS[at], samples, found.now);
  }
}

function makeCard(chart, at) {
  const card = {
    value: h("span", {}, "–"),
    area: s("path.area"),
    line: s("path.line"),
    second: s("path.second"),
    least: h("span"),
    most: h("span"),
  };
  card.svg = s(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${chart.title}: no figures` },
    s("path.base", { d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }),
    card.area,
    card.second,
    card.line,
  );
  card.element = h(
    `section.card.chart.c${at}`,
    {},
    h("h3", {}, chart.title),
    h("p.now", {}, card.value, chart.unit ? h("small", {}, chart.unit) : null),
    card.svg,
    h("p.range", {}, card.least, card.most),
  );
  return card;
}

const shorten = (value) =>
  value === null || value === undefined ? "–" : value >= 100 || Number.isInteger(value) ? count(Math.round(value)) : value.toFixed(1);

function paint(card, chart, samples, now) {
  const values = samples.filter((one) => chart.of(one) !== null && chart.of(one) !== undefined);
  const last = values.at(-1);
  card.value.textContent = last ? shorten(chart.of(last)) : "–";
  const top = values.flatMap((one) => [chart.of(one), chart.second?.(one) ?? 0]);
  const most = Math.max(...top, 0);
  const room = chart.flat ? most * 1.4 || 1 : most * 1.08 || 1;
  const span = Math.min(KEPT_MS, Math.max(LEAST_MS, now - (values[0]?.at ?? now)));
  const x = (one) => (WIDTH * (one.at - (now - span))) / span;
  const y = (value) => HEIGHT - 1 - (value / room) * (HEIGHT - 6);
  const runs = [];
  for (const one of values) {
    if (!runs.length || one.at - runs.at(-1).at(-1).at > GAP_MS) runs.push([]);
    runs.at(-1).push(one);
  }
  const at = (one, of) => `${x(one).toFixed(1)} ${y(of(one)).toFixed(1)}`;
  const line = (of) => runs.map((run) => `M${run.map((one) => at(one, of)).join("L")}`).join("");
  card.line.setAttribute("d", line(chart.of));
  card.area.setAttribute(
    "d",
    runs
      .map((run) => {
        const [from, to] = [run[0], run.at(-1)].map((one) => x(one).toFixed(1));
        return `M${from} ${HEIGHT}L${run.map((one) => at(one, chart.of)).join("L")}L${to} ${HEIGHT}Z`;
      })
      .join(""),
  );
  card.second.setAttribute("d", chart.second ? line(chart.second) : "");
  card.least.textContent = chart.note ?? `last ${Math.round(span / 1000)} s`;
  card.most.textContent = last ? `highest ${shorten(most)}${chart.unit ? ` ${chart.unit}` : ""}` : "no figures";
  card.svg.setAttribute(
    "aria-label",
    last ? `${chart.title}: now ${shorten(chart.of(last))} ${chart.unit}, highest ${shorten(most)}` : `${chart.title}: no figures`,
  );
}
