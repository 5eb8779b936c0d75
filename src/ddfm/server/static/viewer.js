// The stage: panes of layers that all share one zoom and one position.

const MODES = {
  sides: "Side by side", result: "Result", swipe: "Swipe", onion: "Onion skin", checker: "Checkerboard",
  flicker: "Flicker", difference: "Difference", uncertainty: "Uncertainty",
};
const SQUARE = 48; // pixels on the screen

export class Viewer {
  constructor(stage, onchange) {
    this.stage = stage;
    this.onchange = onchange;
    this.sources = []; // {name, url, width, height}
    this.fused = this.uncertainty = null; // {name, url, width, height}
    this.mode = "sides";
    this.against = 0;
    this.position = 0.5;
    this.zoom = 1; // 1 is the whole image
    this.x = this.y = 0.5; // of the image, at the middle of a pane
    this.pointers = new Map();
    this.flick = false;
    setInterval(() => this.#flicker(), 500); // one flash a second: below what disturbs
    new ResizeObserver(() => this.place()).observe(stage);
    stage.addEventListener("wheel", (e) => { e.preventDefault(); this.zoomBy(Math.exp(-e.deltaY / 400), e); }, { passive: false });
    stage.addEventListener("pointerdown", (e) => { stage.setPointerCapture(e.pointerId); this.pointers.set(e.pointerId, e); });
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (e) => this.pointers.delete(e.pointerId));
    stage.addEventListener("pointermove", (e) => this.#drag(e));
    stage.addEventListener("dblclick", () => this.fit());
    stage.addEventListener("keydown", (e) => this.#key(e));
  }

  // The views there are something for.
  modes() {
    const several = this.sources.length > 1;
    return Object.entries(MODES).filter(([mode]) => ({
      result: this.fused, difference: this.fused, uncertainty: this.uncertainty,
    })[mode] ?? (mode === "result" || mode === "difference" || mode === "uncertainty" ? false : several || this.fused));
  }

  // What is compared: the result with a source, or before there is one the first source with another.
  #pair() {
    const other = this.sources[this.against] ?? this.sources[0];
    return this.fused ? [this.fused, other] : [this.sources[0], this.sources[this.against || 1] ?? other];
  }

  async draw() {
    const [top, below] = this.#pair();
    const panes = {
      sides: [...this.sources, ...(this.fused ? [this.fused] : [])].map((image) => [image]),
      result: [[this.fused]],
      difference: [[this.mode === "difference" && { ...this.fused, name: `Difference from ${below.name}`, url: await difference(top, below) }]],
      uncertainty: [[this.uncertainty]],
    }[this.mode] ?? [[below, top]];
    this.stage.replaceChildren(...panes.map((layers) => this.#pane(layers)));
    this.stage.dataset.mode = this.mode;
    const shown = panes.flat().map((image) => image.name).join(", ");
    this.stage.setAttribute("aria-label", `${MODES[this.mode]}: ${shown}. Arrow keys move, plus and minus zoom, 0 fits.`);
    this.place();
  }

  #pane(images) {
    const pane = element("div", "pane");
    images.forEach((image, k) => {
      const layer = element("div", "layer");
      const img = element("img");
      img.alt = "";
      img.draggable = false;
      img.src = image.url;
      layer.append(img);
      layer.image = image;
      const tag = element("span", k ? "tag" : images.length > 1 ? "tag right" : "tag");
      tag.textContent = image.name;
      pane.append(layer, tag);
    });
    if (this.mode === "swipe") pane.append(element("div", "line"));
    return pane;
  }

  // Put every layer where zoom and position want it.
  place() {
    this.#arrange();
    for (const pane of this.stage.children) {
      const { clientWidth: width, clientHeight: height } = pane;
      for (const layer of pane.querySelectorAll(".layer")) {
        const { width: w, height: h } = layer.image;
        const scale = Math.min(width / w, height / h) * this.zoom;
        const img = layer.firstChild;
        img.style.width = `${w}px`;
        img.style.height = `${h}px`;
        img.style.transform = `translate(${width / 2 - this.x * w * scale}px, ${height / 2 - this.y * h * scale}px) scale(${scale})`;
        img.style.imageRendering = scale >= 3 ? "pixelated" : "auto";
        this.scale = scale;
        this.#label(layer.nextSibling, width, height, w * scale, h * scale);
      }
      const [, top] = pane.querySelectorAll(".layer");
      if (top) this.#reveal(pane, top.style);
    }
    this.onchange();
  }

  // In as many columns as make the images largest, nearly: a row reads better than a block.
  #arrange() {
    const panes = [...this.stage.children];
    if (!panes.length) return;
    const { width: w, height: h } = panes[0].querySelector(".layer").image;
    const { clientWidth: width, clientHeight: height } = this.stage;
    const size = (columns) => Math.min(width / columns / w, height / Math.ceil(panes.length / columns) / h);
    const counts = panes.map((_, k) => k + 1);
    const largest = Math.max(...counts.map(size));
    const best = counts.findLast((columns) => size(columns) > 0.95 * largest);
    this.stage.style.gridTemplateColumns = `repeat(${best}, minmax(0, 1fr))`;
  }

  // The name, in the lower corner of what is seen of the image.
  #label(tag, width, height, w, h) {
    const margin = { left: width / 2 - this.x * w, right: width / 2 - (1 - this.x) * w, bottom: height / 2 - (1 - this.y) * h };
    for (const side in margin) margin[side] = 8 + Math.max(0, margin[side]);
    tag.style.bottom = `${margin.bottom}px`;
    const side = tag.classList.contains("right") ? "right" : "left";
    tag.style[side] = `${margin[side]}px`;
    tag.style.maxWidth = `${width - margin.left - margin.right}px`;
  }

  #reveal(pane, style) {
    const line = pane.querySelector(".line");
    const [below, top] = pane.querySelectorAll(".tag");
    below.hidden = this.mode === "flicker" && !this.flick;
    top.hidden = this.mode === "flicker" && this.flick;
    const percent = 100 * this.position;
    style.clipPath = this.mode === "swipe" ? `inset(0 ${100 - percent}% 0 0)` : "";
    style.opacity = this.mode === "onion" ? this.position : this.mode === "flicker" && this.flick ? 0 : 1;
    style.maskImage = this.mode === "checker" ? "repeating-conic-gradient(#000 0 25%, transparent 0 50%)" : "";
    style.maskSize = `${2 * SQUARE}px ${2 * SQUARE}px`;
    if (line) line.style.left = `calc(${percent}% - 1px)`;
  }

  #flicker() {
    if (this.mode !== "flicker") return;
    this.flick = !this.flick;
    this.place();
  }

  fit() { this.zoom = 1; this.x = this.y = 0.5; this.place(); }

  zoomBy(factor, at) {
    const pane = this.stage.firstElementChild;
    if (!pane) return;
    const { width, height } = pane.querySelector(".layer").image;
    const zoom = Math.min(64, Math.max(1, this.zoom * factor));
    if (at) { // what is under the pointer stays there
      const box = (at.target.closest(".pane") ?? pane).getBoundingClientRect();
      const share = 1 / this.scale - this.zoom / zoom / this.scale;
      this.x += (at.clientX - box.left - box.width / 2) * share / width;
      this.y += (at.clientY - box.top - box.height / 2) * share / height;
    }
    this.zoom = zoom;
    this.#bound();
  }

  move(dx, dy) { // pixels on the screen
    const image = this.stage.querySelector(".layer")?.image;
    if (!image) return;
    this.x -= dx / this.scale / image.width;
    this.y -= dy / this.scale / image.height;
    this.#bound();
  }

  #bound() {
    const least = 0.5 / this.zoom;
    this.x = Math.min(1 - least, Math.max(least, this.x));
    this.y = Math.min(1 - least, Math.max(least, this.y));
    this.place();
  }

  #drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) {
      const other = [...this.pointers.values()].find((e) => e.pointerId !== event.pointerId);
      const apart = (e) => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY);
      this.zoomBy(apart(event) / Math.max(1, apart(before)), event);
    } else if (this.zoom === 1 && (this.mode === "swipe" || this.mode === "onion")) {
      const box = this.stage.getBoundingClientRect();
      this.position = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      this.place();
    } else {
      this.move(event.clientX - before.clientX, event.clientY - before.clientY);
    }
  }

  #key(event) {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    const slides = this.zoom === 1 && (this.mode === "swipe" || this.mode === "onion") && { ArrowLeft: -0.05, ArrowRight: 0.05 }[event.key];
    if (slides) { this.position = Math.min(1, Math.max(0, this.position + slides)); this.place(); }
    else if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.25);
    else if (event.key === "-") this.zoomBy(0.8);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }
}

export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// |luma(a) - luma(b)|, four times as bright, as the address of an image.
async function difference(a, b) {
  const [first, second] = await Promise.all([a, b].map((image) => pixels(image, a.width, a.height)));
  const p = first.data, q = second.data;
  const luma = (d, k) => 0.299 * d[k] + 0.587 * d[k + 1] + 0.114 * d[k + 2];
  for (let k = 0; k < p.length; k += 4) {
    p[k] = p[k + 1] = p[k + 2] = 4 * Math.abs(luma(p, k) - luma(q, k));
    p[k + 3] = 255;
  }
  const canvas = new OffscreenCanvas(a.width, a.height);
  canvas.getContext("2d").putImageData(first, 0, 0);
  return URL.createObjectURL(await canvas.convertToBlob());
}

async function pixels({ url }, width, height) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}
