// A layer's maps or units are [count, height, width] float32 numbers of all towers, as the net
// made them; what is drawn is made of them here.
const net = JSON.parse(document.getElementById("net").textContent);
const byId = (id) => document.getElementById(id);
const layerOf = new Map(net.layers.map((layer) => [layer.name, layer]));
const canvases = [...document.querySelectorAll(".maps canvas, canvas.units")];
const loupe = byId("loupe");
const ROWS = 3; // of the strongest maps
const LEVELS = Array.from({ length: 256 }, (_, level) => level / 255);
let found = null; // of the picture that is shown: {head, numbers}
let asked = null; // an AbortController of the picture that is being looked at
let opened = null; // in the loupe: {layer, tower, order, at}

function chosen(name) {
  return document.querySelector(`input[name=${name}]:checked`).value;
}

// What is shown of a layer: its numbers, and how many they are a map (1: units).
function shown(layer) {
  const stage = layer.kind === "conv" ? chosen("stage") : "handed_on";
  const [count, height = 1, width = 1] = layer[stage];
  const each = height * width;
  const start = found ? found.head.places[layer.name][stage] : 0;
  const numbers = found
    ? found.numbers.subarray(start, start + count * each)
    : new Float32Array(count * each);
  return { numbers, height, width, each, peak: largest(numbers) };
}

function largest(numbers) {
  let peak = 0;
  for (const number of numbers) if (Math.abs(number) > peak) peak = Math.abs(number);
  return peak;
}

function top(numbers) {
  return numbers.reduce((a, b) => Math.max(a, b));
}

function* indices([start, stop]) {
  for (let index = start; index < stop; index++) yield index;
}

function strongestFirst(kernels, { numbers, each }) {
  const peaks = new Map(kernels.map((k) => [k, largest(numbers.subarray(k * each, (k + 1) * each))]));
  return [...kernels].sort((a, b) => peaks.get(b) - peaks.get(a) || a - b);
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// From a number to a pixel. Zero, the tower's colour at 0.6 of the way, its peak; below zero grey.
function painter(tower, peak) {
  const [zero, own, most, below] =
    ["--zero", `--tower-${tower % 4}`, `--peak-${tower % 4}`, "--below"].map(colour);
  const pixel = (from, to, part) => {
    const [r, g, b] = from.map((c, i) => Math.round(c + (to[i] - c) * part));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // as canvases have it in memory
  };
  const above = LEVELS.map((t) => (t < 0.6 ? pixel(zero, own, t / 0.6) : pixel(own, most, (t - 0.6) / 0.4)));
  const under = LEVELS.map((t) => pixel(zero, below, t));
  return (number) => {
    const part = peak > 0 && number === number ? Math.sqrt(Math.abs(number) / peak) : 0;
    return (number < 0 ? under : above)[Math.round(255 * part)];
  };
}

// Puts pictures of height × width numbers side by side, `columns` a row, a clear pixel between.
function paint(canvas, pictures, height, width, columns, gap, paintOf) {
  const rows = Math.max(1, Math.ceil(pictures.length / columns));
  const [wide, high] = [columns * (width + gap) - gap, rows * (height + gap) - gap];
  const sheet = new ImageData(wide, high);
  const pixels = new Uint32Array(sheet.data.buffer);
  pictures.forEach((numbers, place) => {
    const [top, left] = [Math.floor(place / columns) * (height + gap), (place % columns) * (width + gap)];
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++)
        pixels[(top + y) * wide + left + x] = paintOf(numbers[y * width + x]);
  });
  // Whole pixels at least as many as the screen has; the browser then scales down smoothly.
  const zoom = Math.max(1, Math.ceil((canvas.clientWidth * devicePixelRatio) / wide));
  const plain = new OffscreenCanvas(wide, high);
  plain.getContext("2d").putImageData(sheet, 0, 0);
  [canvas.width, canvas.height] = [wide * zoom, high * zoom];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(plain, 0, 0, wide * zoom, high * zoom);
  Object.assign(canvas.dataset, { columns, zoom, shown: pictures.length });
}

function draw(canvas) {
  const { layer: name, tower } = (canvas.closest("button") ?? canvas).dataset;
  const layer = layerOf.get(name);
  const what = shown(layer);
  const { numbers, height, width, each } = what;
  const paintOf = painter(Number(tower), what.peak);
  const rows = [...indices(layer.rows[tower])];
  const space = canvas.clientWidth;
  if (layer.kind === "fc") {
    // The same squares in every tower, though the last may hold fewer classes, or none.
    const longest = Math.max(...layer.rows.map(([start, stop]) => stop - start));
    const side = Math.min(14, Math.max(3, Math.sqrt((space * 64) / longest)));
    const columns = Math.min(longest, Math.max(1, Math.floor(space / side)));
    paint(canvas, rows.map((index) => numbers.subarray(index, index + 1)), 1, 1, columns, 0, paintOf);
    canvas.setAttribute("aria-label", describeUnits(layer, tower, rows, numbers));
    return;
  }
  const most = Math.max(4, Math.round(space / (width >= 20 ? 50 : 36)));
  const all = chosen("maps") === "all";
  const columns = Math.min(rows.length, most);
  const order = all ? rows : strongestFirst(rows, what).slice(0, ROWS * columns);
  paint(canvas, order.map((k) => numbers.subarray(k * each, (k + 1) * each)), height, width, columns, 1, paintOf);
  canvas.kernels = order;
  const button = canvas.parentElement;
  button.disabled = !found;
  const which = all ? "all" : `the ${order.length} strongest of`;
  button.setAttribute(
    "aria-label",
    `${name}${inTower(tower)}: ${which} ${rows.length} maps of ${height} by ${width}` +
      (found ? `; strongest is kernel ${strongestFirst(rows, what)[0]}. Enlarge` : ", not computed yet"),
  );
}

function describeUnits(layer, tower, rows, numbers) {
  const kind = layer === net.layers.at(-1) ? "classes" : "units";
  const part = numbers.subarray(...layer.rows[tower]);
  if (!found) return `${layer.name}${inTower(tower)}: ${rows.length} ${kind}, not computed yet`;
  const above = part.filter((number) => number > 0).length;
  const most = rows.length ? top(part).toPrecision(3) : 0;
  return `${layer.name}${inTower(tower)}: ${rows.length} ${kind}, ${above} above zero, largest ${most}`;
}

function inTower(tower) {
  return net.towers > 1 ? `, tower ${tower}` : "";
}

function drawAll() {
  canvases.forEach(draw);
  if (loupe.open) drawLoupe();
}

// The loupe: one map at a time, stronger ones before.
function open(canvas, kernel) {
  const { layer: name, tower } = canvas.parentElement.dataset;
  const layer = layerOf.get(name);
  const order = strongestFirst([...indices(layer.rows[tower])], shown(layer));
  opened = { layer, tower, order, at: Math.max(0, order.indexOf(kernel)) };
  loupe.showModal();
  drawLoupe();
}

function drawLoupe() {
  const { layer, tower, order, at } = opened;
  const { numbers, height, width, each, peak } = shown(layer);
  const kernel = order[at];
  const map = numbers.subarray(kernel * each, (kernel + 1) * each);
  const canvas = byId("loupe-map");
  byId("loupe-title").textContent = `${layer.name}, kernel ${kernel}${inTower(tower)}`;
  paint(canvas, [map], height, width, 1, 0, painter(Number(tower), peak));
  const mean = map.reduce((sum, number) => sum + number, 0) / each;
  const zeros = (100 * map.filter((number) => number === 0).length) / each;
  const about =
    `${height} × ${width} numbers: largest ${top(map).toPrecision(3)}, mean ${mean.toPrecision(3)}, ` +
    `${zeros.toFixed(0)}% zero. Of ${order.length} maps${net.towers > 1 ? " of its tower" : ""}, number ${at + 1} by its peak.`;
  byId("loupe-about").textContent = about;
  canvas.setAttribute("aria-label", `Map of kernel ${kernel}`);
  byId("loupe-back").disabled = at === 0;
  byId("loupe-on").disabled = at === order.length - 1;
  const kernels = byId("loupe-kernel");
  kernels.hidden = layer !== net.layers[0];
  if (kernels.hidden) return;
  const [side, inRow] = [net.kernel_side, Math.min(net.kernel_columns, layer.rows[tower][1] - layer.rows[tower][0])];
  const place = kernel - layer.rows[tower][0];
  const [x, y] = [(place % inRow) * (side + 1), Math.floor(place / inRow) * (side + 1)];
  [kernels.width, kernels.height] = [side, side];
  const sheet = document.querySelectorAll("img.kernels")[tower];
  kernels.getContext("2d").drawImage(sheet, x, y, side, side, 0, 0, side, side);
  kernels.setAttribute("aria-label", `Its ${side} by ${side} weights, as colours`);
}

function turn(by) {
  opened.at = Math.min(opened.order.length - 1, Math.max(0, opened.at + by));
  drawLoupe();
}

// Pictures.
function complain(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = !sentence;
}

async function look(picture, name) {
  asked?.abort();
  const mine = (asked = new AbortController());
  for (const button of document.querySelectorAll("[data-photo]"))
    button.setAttribute("aria-pressed", String(button.dataset.photo === name));
  complain("");
  if (picture.size > net.max_upload_bytes) {
    const limit = Math.floor(net.max_upload_bytes / 2 ** 20);
    return complain(`${name}: larger than the ${limit} MiB that are taken.`);
  }
  byId("status").textContent = `Looking at ${name} …`;
  const since = performance.now();
  try {
    const answer = await fetch("/look", { method: "POST", body: picture, signal: mine.signal });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const buffer = await answer.arrayBuffer();
    if (mine !== asked) return;
    show(buffer, name, (performance.now() - since) / 1000);
  } catch (error) {
    if (error.name === "AbortError") return;
    const lost = error instanceof TypeError; // of fetch
    complain(`${name}: ${lost ? "The server does not answer. Does it still run?" : error.message}`);
    byId("status").textContent = found ? `Still shown: ${found.name}` : "Nothing has been looked at yet.";
  }
}

function show(buffer, name, seconds) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  found = { head, name, numbers: new Float32Array(buffer, 4 + length) };
  byId("seen").hidden = byId("guesses-note").hidden = false;
  byId("seen-pixels").src = head.seen;
  byId("seen-pixels").alt = `The centre of ${name}`;
  byId("seen-less-mean").src = head.less_mean;
  byId("seen-less-mean").alt = "The same less the mean image, as the first layer reads it";
  byId("status").textContent = `${name}, looked at in ${seconds.toFixed(2)} s:`;
  byId("guesses").replaceChildren(...head.guesses.map(guessed));
  drawAll();
  byId("flow").classList.remove("arrived");
  requestAnimationFrame(() => byId("flow").classList.add("arrived"));
}

function guessed({ name, probability, tower }) {
  const [item, words, value, bar] = ["li", "span", "b", "i"].map((tag) => document.createElement(tag));
  words.textContent = name;
  value.textContent = probability === null ? "no number" : `${(100 * probability).toFixed(1)}%`;
  bar.className = `tower-${tower % 4}`;
  bar.style.width = `${100 * (probability ?? 0)}%`;
  item.append(words, value, bar);
  return item;
}

function takeFrom(files, where) {
  if (files.length) look(files[0], files[0].name || "the picture");
  else complain(`There is no picture in what was ${where}; a file of a picture is needed.`);
}

byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) takeFrom(event.target.files, "chosen");
  event.target.value = ""; // so that the same file can be chosen again
});
addEventListener("paste", (event) => takeFrom(event.clipboardData.files, "pasted"));
let within = 0; // elements that a dragged file is over
addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++within > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dragging", --within > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  within = 0;
  document.body.classList.remove("dragging");
  takeFrom(event.dataTransfer.files, "dropped");
});
for (const button of document.querySelectorAll("[data-photo]"))
  button.addEventListener("click", async () => {
    const name = button.dataset.photo;
    try {
      look(await (await fetch(`/photos/${name}`)).blob(), name);
    } catch {
      complain("The server does not answer. Does it still run?");
    }
  });
for (const button of document.querySelectorAll(".maps"))
  button.addEventListener("click", (event) => {
    const canvas = button.firstElementChild;
    const { columns, shown } = canvas.dataset;
    const column = Math.floor((event.offsetX / canvas.clientWidth) * columns);
    const row = Math.floor((event.offsetY / canvas.clientHeight) * Math.ceil(shown / columns));
    // By key, or beside the maps: the strongest.
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
