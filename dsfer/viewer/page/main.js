// One page: the map, what lies on it, and the controls.

import { makeGraticule, position } from "./graticule.js";
import { Pictures, addPane, levelOf, makeMap, refusal } from "./map.js";
import { Outlines, area, number } from "./outlines.js";
import { Probability } from "./probability.js";
import { makeSwipe } from "./swipe.js";

const SWIPE_STEP = 0.02;
const $ = (id) => document.getElementById(id);

function say(message) {
  $("message").textContent = message;
  $("message").hidden = !message;
}

async function start() {
  const response = await fetch("map.json");
  if (!response.ok) throw new Error(await refusal(response));
  const facts = await response.json();
  describe(facts);
  const map = makeMap(facts);
  const before = dateLayer(map, facts, "before", 200);
  const after = dateLayer(map, facts, "after", 201);
  addPane(map, "probability", 300);
  addPane(map, "errors", 310);
  addPane(map, "outlines", 400, true);

  const probability = new Probability(facts.tile, facts.threshold, {
    ...map.tiles,
    pane: "probability",
  }).addTo(map);
  probability.on("tileerror", ({ error }) => say(error.message));
  const errors = facts.scored && new Pictures("errors", { ...map.tiles, pane: "errors" });
  const outlines = new Outlines(map, facts, say);
  const setThreshold = thresholdControl(facts, probability);
  const moveSwipe = makeSwipe(map, before, after);
  const showGrid = makeGraticule(map, facts);

  toggle("show-probability", (shown) => map[shown ? "addLayer" : "removeLayer"](probability));
  toggle("show-outlines", (shown) => outlines.show(shown));
  toggle("show-grid", showGrid);
  if (errors) {
    toggle("show-errors", (shown) => {
      map[shown ? "addLayer" : "removeLayer"](errors);
      $("errors-legend").hidden = !shown;
    });
  }
  $("next").addEventListener("click", () => outlines.go("next"));
  $("previous").addEventListener("click", () => outlines.go("previous"));
  readout(map, facts, probability);
  keys(map, {
    a: () => moveSwipe(-SWIPE_STEP),
    d: () => moveSwipe(SWIPE_STEP),
    s: () => setThreshold(-1),
    w: () => setThreshold(1),
    p: () => $("show-probability").click(),
    o: () => $("show-outlines").click(),
    e: () => errors && $("show-errors").click(),
    g: () => $("show-grid").click(),
    n: () => outlines.go("next"),
    b: () => outlines.go("previous"),
    f: () => map.fitBounds(map.whole),
  });
}

function describe(facts) {
  document.title = `${facts.name}: change map`;
  $("name").textContent = facts.name;
  $("facts").textContent =
    `${number(facts.changes)} ${facts.changes === 1 ? "change" : "changes"}, ` +
    `${area(facts.changed_area_m2)}, at threshold ${number(facts.threshold, 4)}` +
    (facts.model ? `, by ${facts.model}` : "");
  for (const date of ["before", "after"]) {
    const name = document.createElement("small");
    name.textContent = facts.dates[date].name;
    $(`${date}-name`).replaceChildren(date, name);
  }
  const problems = Object.values(facts.dates).map(({ problem }) => problem);
  say(problems.filter(Boolean).join(" "));
  $("errors-row").hidden = !facts.scored;
  if (facts.scores) {
    const shown = ["F1", "P", "R", "IoU"].map((name) => `${name}\u00a0${facts.scores[name]?.toFixed(1) ?? "none"}`);
    $("scores").textContent = `Against the label: ${shown.join(" · ")}`;
    $("scores").hidden = false;
  }
}

// Tiles of a date, in a pane that the swipe clips; an empty pane where the raster is gone.
function dateLayer(map, facts, name, zIndex) {
  const pane = addPane(map, name, zIndex);
  if (facts.dates[name].problem) return pane;
  const tiles = new Pictures(name, { ...map.tiles, pane: name }).addTo(map);
  tiles.on("tileerror", async ({ tile }) => {
    const response = await fetch(tile.src);
    if (!response.ok) say(await refusal(response));
  });
  return pane;
}

function thresholdControl(facts, probability) {
  const slider = $("threshold");
  slider.value = facts.threshold;
  const mapped = slider.value; // what it was mapped at may lie between two steps: this is the nearest
  let drawing = 0;
  function show() {
    const value = slider.value === mapped ? facts.threshold : Number(slider.value);
    $("threshold-value").textContent = value.toFixed(value === Number(slider.value) ? 2 : 4);
    slider.parentElement.style.setProperty("--threshold", value);
    $("threshold-note").textContent =
      value === facts.threshold
        ? "As mapped."
        : `Outlines and errors stay those of ${number(facts.threshold, 4)}.`;
    cancelAnimationFrame(drawing); // one repaint per picture of the screen, however fast it is moved
    drawing = requestAnimationFrame(() => probability.setThreshold(value));
  }
  slider.addEventListener("input", show);
  show();
  return (steps) => {
    slider[steps > 0 ? "stepUp" : "stepDown"](Math.abs(steps));
    show();
  };
}

function readout(map, facts, probability) {
  map.on("mousemove", ({ latlng }) => {
    const [col, row] = [latlng.lng, latlng.lat];
    if (!map.whole.contains(latlng)) return ($("position").textContent = "");
    const level = levelOf(map.getZoom(), facts.levels);
    const value = probability.at(level, col, row);
    const said = value === undefined ? "" : Number.isNaN(value) ? "no data" : `p ${value.toFixed(2)}`;
    $("position").textContent = [position(facts, col, row), said].filter(Boolean).join("   ");
  });
  map.on("mouseout", () => ($("position").textContent = ""));
}

function toggle(id, show) {
  $(id).addEventListener("change", ({ target }) => show(target.checked));
}

function keys(map, actions) {
  // Where nothing has the focus, keys are the map's; it listens once it has it.
  document.addEventListener(
    "keydown",
    ({ key }) => {
      const unfocused = document.activeElement === document.body;
      if (unfocused && /^(Arrow.*|[+=-])$/.test(key)) map.getContainer().focus();
    },
    true,
  );
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const action = actions[event.key.toLowerCase()];
    if (action) {
      event.preventDefault();
      action();
    }
  });
}

start().catch((error) => say(error.message));
