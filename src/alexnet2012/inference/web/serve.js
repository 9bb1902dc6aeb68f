// Draws a layer's maps or units from the model's activations: float32 [count, height, width] of
// all towers, tower 0 first.
const model = JSON.parse(document.getElementById("model").textContent);
const byId = (id) => document.getElementById(id);
const layerOf = new Map(model.layers.map((layer) => [layer.name, layer]));
const canvases = [...document.querySelectorAll(".maps canvas, canvas.units")];
const loupe = byId("loupe");
const ROWS = 3; // rows of maps when only the strongest are shown
const UNREACHABLE = "The server does not respond; check that it is still running.";
const LEVELS = Array.from({ length: 256 }, (_, level) => level / 255);
let current = null; // the image that is shown: {head, name, values}
let pending = null; // AbortController of the latest request
let opened = null; // the map in the loupe: {layer, tower, order, at}

function selected(name) {
  return document.querySelector(`input[name=${name}]:checked`).value;
}

// The activations of a layer at the selected stage; `size`: values per map (1 for units).
function activations(layer) {
  const stage = layer.kind === "conv" ? selected("stage") : "handed_on";
  const [count, height = 1, width = 1] = layer[stage];
  const size = height * width;
  const start = current ? current.head.places[layer.name][stage] : 0;
  const values = current
    ? current.values.subarray(start, start + count * size)
    : new Float32Array(count * size);
  return { values, height, width, size, peak: maxAbs(values) };
}

function maxAbs(values) {
  let peak = 0;
  for (const value of values) if (Math.abs(value) > peak) peak = Math.abs(value);
  return peak;
}

function maximum(values) {
  return values.reduce((a, b) => Math.max(a, b));
}

function* indices([start, stop]) {
  for (let index = start; index < stop; index++) yield index;
}

function strongestFirst(kernels, { values, size }) {
  const peaks = new Map(kernels.map((k) => [k, maxAbs(values.subarray(k * size, (k + 1) * size))]));
  return [...kernels].sort((a, b) => peaks.get(b) - peaks.get(a) || a - b);
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// Maps a value to a pixel: from the zero colour through the tower's colour (at 0.6 of the scale) to
// its peak colour; negative values are grey.
function colourMap(tower, peak) {
  const [zero, mid, high, below] =
    ["--zero", `--tower-${tower % 4}`, `--peak-${tower % 4}`, "--below"].map(colour);
  const mix = (from, to, t) => {
    const [r, g, b] = from.map((c, i) => Math.round(c + (to[i] - c) * t));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // a canvas's pixel in memory
  };
  const positive = LEVELS.map((t) => (t < 0.6 ? mix(zero, mid, t / 0.6) : mix(mid, high, (t - 0.6) / 0.4)));
  const negative = LEVELS.map((t) => mix(zero, below, t));
  return (value) => {
    const level = peak > 0 && value === value ? Math.sqrt(Math.abs(value) / peak) : 0; // NaN: zero
    return (value < 0 ? negative : positive)[Math.round(255 * level)];
  };
}

// Draws maps of height × width values in a grid with `columns` columns, `gap` clear pixels apart.
function paint(canvas, maps, height, width, columns, gap, toPixel) {
  const rows = Math.max(1, Math.ceil(maps.length / columns));
  const [gridWidth, gridHeight] = [columns * (width + gap) - gap, rows * (height + gap) - gap];
  const sheet = new ImageData(gridWidth, gridHeight);
  const pixels = new Uint32Array(sheet.data.buffer);
  maps.forEach((values, index) => {
    const [top, left] = [Math.floor(index / columns) * (height + gap), (index % columns) * (width + gap)];
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        pixels[(top + y) * gridWidth + left + x] = toPixel(values[y * width + x]);
  });
  // Enlarge by a whole factor to at least the screen's resolution; the browser scales down smoothly.
  const zoom = Math.max(1, Math.ceil((canvas.clientWidth * devicePixelRatio) / gridWidth));
  const unscaled = new OffscreenCanvas(gridWidth, gridHeight);
  unscaled.getContext("2d").putImageData(sheet, 0, 0);
  [canvas.width, canvas.height] = [gridWidth * zoom, gridHeight * zoom];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(unscaled, 0, 0, gridWidth * zoom, gridHeight * zoom);
  Object.assign(canvas.dataset, { columns, zoom, shown: maps.length });
}

function draw(canvas) {
  const { layer: name, tower } = (canvas.closest("button") ?? canvas).dataset;
  const layer = layerOf.get(name);
  const output = activations(layer);
  const { values, height, width, size } = output;
  const toPixel = colourMap(Number(tower), output.peak);
  const rows = [...indices(layer.rows[tower])];
  const space = canvas.clientWidth;
  if (layer.kind === "fc") {
    // Equal squares in all towers: the last one may hold fewer classes, or none.
    const longest = Math.max(...layer.rows.map(([start, stop]) => stop - start));
    const side = Math.min(14, Math.max(3, Math.sqrt((space * 64) / longest)));
    const columns = Math.min(longest, Math.max(1, Math.floor(space / side)));
    paint(canvas, rows.map((index) => values.subarray(index, index + 1)), 1, 1, columns, 0, toPixel);
    canvas.setAttribute("aria-label", describeUnits(layer, tower, rows, values));
    return;
  }
  const maxColumns = Math.max(4, Math.round(space / (width >= 20 ? 50 : 36)));
  const all = selected("maps") === "all";
  const columns = Math.min(rows.length, maxColumns);
  const order = all ? rows : strongestFirst(rows, output).slice(0, ROWS * columns);
  paint(canvas, order.map((k) => values.subarray(k * size, (k + 1) * size)), height, width, columns, 1, toPixel);
  canvas.kernels = order;
  const button = canvas.parentElement;
  button.disabled = !current;
  const selection = all ? "all" : `the ${order.length} strongest of`;
  button.setAttribute(
    "aria-label",
    `${name}${inTower(tower)}: ${selection} ${rows.length} maps of ${height} by ${width}` +
      (current ? `; strongest is kernel ${strongestFirst(rows, output)[0]}. Enlarge` : ", not computed yet"),
  );
}

function describeUnits(layer, tower, rows, values) {
  const kind = layer === model.layers.at(-1) ? "classes" : "units";
  const shard = values.subarray(...layer.rows[tower]);
  if (!current) return `${layer.name}${inTower(tower)}: ${rows.length} ${kind}, not computed yet`;
  const positive = shard.filter((value) => value > 0).length;
  const peak = rows.length ? maximum(shard).toPrecision(3) : 0;
  return `${layer.name}${inTower(tower)}: ${rows.length} ${kind}, ${positive} positive, maximum ${peak}`;
}

function inTower(tower) {
  return model.towers > 1 ? `, tower ${tower}` : "";
}

function drawAll() {
  canvases.forEach(draw);
  if (loupe.open) drawLoupe();
}

// The loupe shows one map at a time, in the order of their peaks.
function open(canvas, kernel) {
  const { layer: name, tower } = canvas.parentElement.dataset;
  const layer = layerOf.get(name);
  const order = strongestFirst([...indices(layer.rows[tower])], activations(layer));
  opened = { layer, tower, order, at: Math.max(0, order.indexOf(kernel)) };
  loupe.showModal();
  drawLoupe();
}

function drawLoupe() {
  const { layer, tower, order, at } = opened;
  const { values, height, width, size, peak } = activations(layer);
  const kernel = order[at];
  const map = values.subarray(kernel * size, (kernel + 1) * size);
  const canvas = byId("loupe-map");
  byId("loupe-title").textContent = `${layer.name}, kernel ${kernel}${inTower(tower)}`;
  paint(canvas, [map], height, width, 1, 0, colourMap(Number(tower), peak));
  const mean = map.reduce((sum, value) => sum + value, 0) / size;
  const zeros = (100 * map.filter((value) => value === 0).length) / size;
  const statistics =
    `${height} × ${width} values: maximum ${maximum(map).toPrecision(3)}, mean ${mean.toPrecision(3)}, ` +
    `${zeros.toFixed(0)}% zero. Rank ${at + 1} of ${order.length} maps${model.towers > 1 ? " of this tower" : ""}, by peak.`;
  byId("loupe-about").textContent = statistics;
  canvas.setAttribute("aria-label", `Map of kernel ${kernel}`);
  byId("loupe-back").disabled = at === 0;
  byId("loupe-on").disabled = at === order.length - 1;
  const kernels = byId("loupe-kernel");
  kernels.hidden = layer !== model.layers[0];
  if (kernels.hidden) return;
  const [side, perRow] = [model.kernel_side, Math.min(model.kernel_columns, layer.rows[tower][1] - layer.rows[tower][0])];
  const index = kernel - layer.rows[tower][0];
  const [x, y] = [(index % perRow) * (side + 1), Math.floor(index / perRow) * (side + 1)];
  [kernels.width, kernels.height] = [side, side];
  const sheet = document.querySelectorAll("img.kernels")[tower];
  kernels.getContext("2d").drawImage(sheet, x, y, side, side, 0, 0, side, side);
  kernels.setAttribute("aria-label", `The ${side} by ${side} weights of kernel ${kernel} as an RGB image`);
}

function turn(by) {
  opened.at = Math.min(opened.order.length - 1, Math.max(0, opened.at + by));
  drawLoupe();
}

// Uploads.
function showError(message) {
  byId("problem").textContent = message;
  byId("problem").hidden = !message;
}

async function inspect(file, name) {
  pending?.abort();
  const request = (pending = new AbortController());
  for (const button of document.querySelectorAll("[data-photo]"))
    button.setAttribute("aria-pressed", String(button.dataset.photo === name));
  showError("");
  if (file.size > model.max_upload_bytes) {
    const limit = Math.floor(model.max_upload_bytes / 2 ** 20);
    return showError(`${name}: larger than the limit of ${limit} MiB.`);
  }
  byId("status").textContent = `Classifying ${name} …`;
  const start = performance.now();
  try {
    const answer = await fetch("/look", { method: "POST", body: file, signal: request.signal });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const buffer = await answer.arrayBuffer();
    if (request !== pending) return;
    show(buffer, name, (performance.now() - start) / 1000);
  } catch (error) {
    if (error.name === "AbortError") return;
    const unreachable = error instanceof TypeError; // raised by fetch
    showError(`${name}: ${unreachable ? UNREACHABLE : error.message}`);
    byId("status").textContent = current ? `Still showing ${current.name}` : "No image yet.";
  }
}

function show(buffer, name, seconds) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  current = { head, name, values: new Float32Array(buffer, 4 + length) };
  byId("seen").hidden = byId("predictions-note").hidden = false;
  byId("seen-pixels").src = head.seen;
  byId("seen-pixels").alt = `The centre view of ${name}`;
  byId("seen-less-mean").src = head.less_mean;
  byId("seen-less-mean").alt = "The centre view minus the mean image, the input of the first layer";
  byId("status").textContent = `${name} (${seconds.toFixed(2)} s):`;
  byId("predictions").replaceChildren(...head.guesses.map(predictionItem));
  drawAll();
  byId("flow").classList.remove("arrived");
  requestAnimationFrame(() => byId("flow").classList.add("arrived"));
}

function predictionItem({ name, probability, tower }) {
  const [item, label, value, bar] = ["li", "span", "b", "i"].map((tag) => document.createElement(tag));
  label.textContent = name;
  value.textContent = `${(100 * probability).toFixed(1)}%`;
  bar.className = `tower-${tower % 4}`;
  bar.style.width = `${100 * probability}%`;
  item.append(label, value, bar);
  return item;
}

function inspectFirst(files, action) {
  if (files.length) inspect(files[0], files[0].name || "image");
  else showError(`No image file was ${action}.`);
}

byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) inspectFirst(event.target.files, "chosen");
  event.target.value = ""; // lets the same file be chosen again
});
addEventListener("paste", (event) => inspectFirst(event.clipboardData.files, "pasted"));
let dragDepth = 0; // nested elements under a dragged file
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++dragDepth > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --dragDepth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragDepth = 0;
  document.body.classList.remove("dragging");
  inspectFirst(event.dataTransfer.files, "dropped");
});
for (const button of document.querySelectorAll("[data-photo]"))
  button.addEventListener("click", async () => {
    const name = button.dataset.photo;
    try {
      inspect(await (await fetch(`/photos/${name}`)).blob(), name);
    } catch {
      showError(UNREACHABLE);
    }
  });
for (const button of document.querySelectorAll(".maps"))
  button.addEventListener("click", (event) => {
    const canvas = button.firstElementChild;
    const { columns, shown } = canvas.dataset;
    const column = Math.floor((event.offsetX / canvas.clientWidth) * columns);
    const row = Math.floor((event.offsetY / canvas.clientHeight) * Math.ceil(shown / columns));
    // A key press, or a click beside the maps, opens the strongest.
    open(canvas, event.detail ? canvas.kernels[row * columns + column] : undefined);
  });
byId("switches").addEventListener("change", drawAll);
byId("loupe-close").addEventListener("click", () => loupe.close());
byId("loupe-back").addEventListener("click", () => turn(-1));
byId("loupe-on").addEventListener("click", () => turn(1));
loupe.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
loupe.addEventListener("click", (event) => event.target === loupe && loupe.close());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
let resized = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(drawAll);
});
drawAll();
