// The map: its coordinates are the pixels of the raster, x its column and y its row, so that every
// CRS is shown alike and no pixel is warped. Zoom 0 shows a pixel of the raster as one of the
// screen; -n shows tiles of level n.

export function makeMap(facts) {
  const [width, height] = facts.metres;
  // Pixels need not be square on the ground: those of degrees are not.
  const tileSize = L.point(facts.tile, Math.max(1, Math.round((facts.tile * height) / width)));
  const crs = L.extend({}, L.CRS.Simple, {
    transformation: new L.Transformation(1, 0, tileSize.y / tileSize.x, 0),
    distance: (a, b) => Math.hypot((a.lng - b.lng) * width, (a.lat - b.lat) * height),
  });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const whole = L.latLngBounds([0, 0], [facts.rows, facts.cols]);
  const map = L.map("map", {
    crs,
    minZoom: -facts.levels - 2,
    maxZoom: 5,
    maxBounds: whole.pad(0.5),
    zoomSnap: 0.25,
    attributionControl: false,
    zoomControl: false,
    zoomAnimation: !still,
    fadeAnimation: !still,
    inertia: !still,
  });
  map.whole = whole;
  map.fitBounds(whole);
  L.control.zoom({ position: "topright" }).addTo(map);
  L.control.scale({ imperial: false, maxWidth: 160 }).addTo(map);
  map.tiles = {
    tileSize,
    bounds: whole,
    minZoom: -facts.levels - 2,
    maxZoom: 5,
    minNativeZoom: -facts.levels,
    maxNativeZoom: 0,
    noWrap: true,
  };
  return map;
}

// Levels that tiles have, for a zoom of the map.
export function levelOf(zoom, levels) {
  return Math.min(levels, Math.max(0, -Math.round(zoom)));
}

export function addPane(map, name, zIndex, clicks = false) {
  const pane = map.createPane(name);
  pane.style.zIndex = zIndex;
  if (!clicks) pane.style.pointerEvents = "none";
  return pane;
}

// Tiles that are pictures. Their addresses name the level, not the zoom.
export const Pictures = L.TileLayer.extend({
  initialize(name, options) {
    L.TileLayer.prototype.initialize.call(this, `tiles/${name}/{level}/{x}/{y}`, {
      ...options,
      level: (data) => -data.z,
    });
  },
});

// What the server says about an address that it refused.
export async function refusal(response) {
  const said = await response.json().catch(() => ({}));
  return said.message ?? `the server answered ${response.status}`;
}
