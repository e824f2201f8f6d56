// A grid of coordinates over the map: the ground to stand on where there is no base map.

const SPACING = 170; // pixels of the screen between two lines, about

export function makeGraticule(map, facts) {
  const canvas = document.getElementById("graticule");
  const [a, , left, , e, top] = facts.transform; // north up: coordinates are linear in pixels

  function draw() {
    const size = map.getSize();
    const dots = window.devicePixelRatio || 1;
    canvas.width = size.x * dots;
    canvas.height = size.y * dots;
    const pen = canvas.getContext("2d");
    pen.scale(dots, dots);
    pen.font = "11px system-ui, 'DejaVu Sans', sans-serif";
    const view = map.getBounds();
    lines(pen, left + a * view.getWest(), left + a * view.getEast(), (x) => {
      const at = map.latLngToContainerPoint([0, (x - left) / a]).x;
      return { from: [at, 0], to: [at, size.y], label: [at + 4, 13] };
    });
    lines(pen, top + e * view.getNorth(), top + e * view.getSouth(), (y) => {
      const at = map.latLngToContainerPoint([(y - top) / e, 0]).y;
      return { from: [0, at], to: [size.x, at], label: [4, at - 4] };
    });
  }

  function lines(pen, low, high, place) {
    const pixels = place(high).from.map((value, i) => Math.abs(value - place(low).from[i]));
    const step = niceStep(((high - low) * SPACING) / Math.max(...pixels));
    for (let i = Math.ceil(low / step); i * step <= high; i++) {
      const { from, to, label } = place(i * step);
      for (const [style, width] of [["#0005", 2.5], ["#fffb", 1]]) {
        pen.strokeStyle = style;
        pen.lineWidth = width;
        pen.beginPath();
        pen.moveTo(...from);
        pen.lineTo(...to);
        pen.stroke();
      }
      write(pen, coordinate(i * step, step, facts.degrees), label);
    }
  }

  map.on("move zoomend resize", draw);
  map.on("zoomstart", () => (canvas.width = 0));
  draw();
  return (shown) => (canvas.hidden = !shown);
}

function write(pen, text, place) {
  pen.lineWidth = 3;
  pen.strokeStyle = "#000b";
  pen.strokeText(text, ...place);
  pen.fillStyle = "#fff";
  pen.fillText(text, ...place);
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= least * 0.999);
}

function coordinate(value, step, degrees) {
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return degrees ? `${text}°` : text;
}

// Where a pixel of the map lies, in its CRS.
export function position(facts, col, row) {
  const [a, , left, , e, top] = facts.transform;
  const digits = facts.degrees ? 6 : 1;
  const text = [left + a * col, top + e * row].map((value) => value.toFixed(digits)).join(", ");
  return `${facts.crs}  ${text}`;
}
