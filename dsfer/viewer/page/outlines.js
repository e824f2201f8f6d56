// Outlines of the changes in view, and the one that is selected.

import { levelOf, refusal } from "./map.js";

const LINE = { color: "#e83ef7", weight: 1.5, fill: true, fillOpacity: 0, interactive: true };
const CASING = { color: "#10202c", weight: 3.5, opacity: 0.7, fill: false, interactive: false };
const SELECTED = { ...LINE, color: "#ffffff", weight: 4, interactive: false };
const SELECTED_CASING = { ...CASING, weight: 8, opacity: 1 };

export class Outlines {
  constructor(map, facts, say) {
    Object.assign(this, { map, facts, say, selected: null, going: Promise.resolve() });
    const renderer = L.canvas({ pane: "outlines", padding: 0.2 });
    const drawn = (style, options) =>
      L.geoJSON(null, { renderer, pane: "outlines", style: { ...style, renderer }, ...options });
    const click = (feature, layer) =>
      layer.on("click", (event) => {
        L.DomEvent.stopPropagation(event);
        this.select(feature);
      });
    this.casing = drawn(CASING);
    this.lines = drawn(LINE, { onEachFeature: click });
    this.mark = L.layerGroup([drawn(SELECTED_CASING), drawn(SELECTED)]).addTo(map);
    this.group = L.layerGroup([this.casing, this.lines]).addTo(map);
    this.note = document.getElementById("outlines-note");
    this.panel = document.getElementById("change");
    map.on("moveend", () => this.load());
    map.on("click", () => this.select(null));
    this.select(null);
    this.load();
  }

  show(shown) {
    this.map[shown ? "addLayer" : "removeLayer"](this.group);
    this.load();
  }

  async load() {
    this.asked?.abort();
    this.asked = new AbortController();
    if (!this.map.hasLayer(this.group)) {
      this.note.textContent = "";
      return;
    }
    const { rows, cols, levels } = this.facts;
    const view = this.map.getBounds();
    const clamp = (value, most) => Math.round(Math.min(most, Math.max(0, value)));
    const box = [
      clamp(view.getWest(), cols),
      clamp(view.getSouth(), rows), // rows grow downwards: the smallest is the top
      clamp(view.getEast(), cols),
      clamp(view.getNorth(), rows),
    ];
    const level = levelOf(this.map.getZoom(), levels);
    const found = await this.fetched(`outlines/${[level, ...box].join("/")}`, this.asked.signal);
    if (!found) return;
    this.casing.clearLayers().addData(found);
    this.lines.clearLayers().addData(found);
    this.mark.eachLayer((layer) => layer.bringToFront());
    const { length } = found.features;
    this.note.textContent =
      length < found.total
        ? `The ${number(length)} largest of ${number(found.total)} changes in view are outlined: zoom in to see the others.`
        : `${number(length)} ${length === 1 ? "change" : "changes"} in view.`;
  }

  // However fast it is asked for, one step begins where the last one ended.
  go(way) {
    this.going = this.going.then(() => this.step(way));
  }

  async step(way) {
    const from = this.selected?.properties.id ?? 0;
    const feature = await this.fetched(`outlines/${way}/${from}`);
    if (!feature) return;
    const bounds = L.geoJSON(feature).getBounds();
    this.map.fitBounds(bounds, { padding: [120, 120], maxZoom: 2 });
    this.select(feature);
  }

  async fetched(address, signal) {
    try {
      const response = await fetch(address, { signal });
      if (!response.ok) throw new Error(await refusal(response));
      return await response.json();
    } catch (error) {
      if (error.name !== "AbortError") this.say(error.message);
      return null;
    }
  }

  select(feature) {
    this.selected = feature;
    this.mark.eachLayer((layer) => {
      layer.clearLayers();
      if (feature) layer.addData(feature);
      layer.bringToFront();
    });
    if (!feature) {
      const hint = document.createElement("p");
      hint.textContent = this.facts.changes
        ? "Click an outline, or go from one change to the next."
        : "There is no change on this map.";
      this.panel.replaceChildren(hint);
      return;
    }
    const list = document.createElement("dl");
    for (const [name, value] of Object.entries(feature.properties)) {
      const [term, text] = attribute(name, value, this.facts);
      list.append(element("dt", term), element("dd", text));
    }
    this.panel.replaceChildren(list);
  }
}

function element(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { maximumFractionDigits: digits });

// Square metres as a person reads them.
export function area(value) {
  return value >= 1e6 ? `${number(value / 1e6, 2)} km²` : `${number(value, value < 100 ? 1 : 0)} m²`;
}

function attribute(name, value, facts) {
  if (value === null) return [name, "none"];
  if (name === "id") return ["number", `${number(value)} of ${number(facts.changes)}`];
  if (name === "area_m2") return ["area", area(value)];
  if (name === "mean_probability") return ["mean probability", value.toFixed(3)];
  return [name.replaceAll("_", " "), typeof value === "number" ? number(value, 3) : String(value)];
}
