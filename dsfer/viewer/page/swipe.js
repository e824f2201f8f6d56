// Before on the left of the divider, after on its right. The slider is the one state.

export function makeSwipe(map, before, after) {
  const slider = document.getElementById("swipe");
  const divider = document.getElementById("divider");

  function draw() {
    const size = map.getSize();
    const share = Number(slider.value);
    divider.style.left = `${100 * share}%`;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * share)} % before`);
    const corner = map.containerPointToLayerPoint([0, 0]);
    const end = map.containerPointToLayerPoint(size);
    const middle = corner.x + size.x * share;
    before.style.clipPath = rectangle(corner.x, corner.y, middle, end.y);
    after.style.clipPath = rectangle(middle, corner.y, end.x, end.y);
  }

  slider.addEventListener("input", draw);
  map.on("move zoomend resize", draw);
  draw();
  return (step) => {
    slider.value = Number(slider.value) + step;
    draw();
  };
}

function rectangle(left, top, right, bottom) {
  return `polygon(${left}px ${top}px, ${right}px ${top}px, ${right}px ${bottom}px, ${left}px ${bottom}px)`;
}
