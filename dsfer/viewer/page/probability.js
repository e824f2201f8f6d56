// Tiles of probabilities, float32. They are coloured here, so that a threshold shows at once.

import { refusal } from "./map.js";

const OPACITY = 200; // of 255

// Yellow to red of ColorBrewer, as the ramp of the slider in viewer.css.
const STOPS = ["ffffb2", "fecc5c", "fd8d3c", "f03b20", "bd0026"].map((hex) =>
  [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)),
);

// Colours of 256 probabilities as numbers whose bytes are R, G, B, A.
const COLOURS = (() => {
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (STOPS.length - 1);
    const from = Math.min(Math.floor(place), STOPS.length - 2);
    const colour = STOPS[from].map((low, c) => low + (place - from) * (STOPS[from + 1][c] - low));
    bytes.set([...colour, OPACITY], 4 * i);
  }
  return new Uint32Array(bytes.buffer);
})();

export const Probability = L.GridLayer.extend({
  initialize(side, threshold, options) {
    L.GridLayer.prototype.initialize.call(this, options);
    this.side = side;
    this.threshold = Math.fround(threshold);
    this.held = new Map();
    this.on("tileunload", ({ tile }) => {
      tile.asked.abort();
      this.held.delete(tile.key);
    });
  },

  createTile({ x, y, z }, done) {
    const tile = document.createElement("canvas");
    tile.width = tile.height = this.side;
    tile.key = `${-z}/${x}/${y}`;
    tile.asked = new AbortController();
    this.fetched(tile).then(
      () => done(null, tile),
      (error) => error.name === "AbortError" || done(error, tile),
    );
    return tile;
  },

  async fetched(tile) {
    const response = await fetch(`tiles/probability/${tile.key}`, { signal: tile.asked.signal });
    if (!response.ok) throw new Error(await refusal(response));
    tile.values = new Float32Array(await response.arrayBuffer());
    this.held.set(tile.key, tile);
    this.paint(tile);
  },

  paint(tile) {
    const { values } = tile;
    const image = new ImageData(this.side, this.side);
    const pixels = new Uint32Array(image.data.buffer);
    const threshold = this.threshold;
    for (let i = 0; i < values.length; i++) {
      // NaN, where there is no data, is above no threshold.
      if (values[i] > threshold) pixels[i] = COLOURS[Math.round(values[i] * 255)];
    }
    tile.getContext("2d").putImageData(image, 0, 0);
  },

  setThreshold(threshold) {
    this.threshold = Math.fround(threshold);
    for (const tile of this.held.values()) this.paint(tile);
  },

  // The probability of a pixel of the map, undefined where no tile of that level is held.
  at(level, col, row) {
    const [x, y] = [col, row].map((place) => Math.floor(place / (this.side << level)));
    const [i, j] = [col, row].map((place) => Math.floor(place / (1 << level)) % this.side);
    return this.held.get(`${level}/${x}/${y}`)?.values[j * this.side + i];
  },
});
