"use strict";
// What is chosen, what is shown; worker.js computes.
const $ = (selector) => document.querySelector(selector);
const index = JSON.parse($("#index").textContent);
const LARGEST = 256;
// Multiplications of a network in a second, before one was timed here.
let speed = 2e9;
let worker;
let photo;
let request;
let ticking;

function bytes(id) {
  const text = atob($(id).textContent);
  const result = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) result[place] = text.charCodeAt(place);
  return result;
}

async function unpacked(id) {
  const stream = new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Numbers come as all of their first bytes, then all of their second ones, and so on.
function fromPlanes(buffer) {
  const planes = new Uint8Array(buffer);
  const size = planes.length / 4;
  return Uint8Array.from(planes, (_, place) => planes[(place % 4) * size + Math.floor(place / 4)]).buffer;
}

// What came with the page, unpacked once; every worker gets a copy.
const shipped = (async () => ({
  index,
  pool: fromPlanes(await unpacked("#pool")),
  wasm: await unpacked("#wasm"),
}))();
const script = (async () => URL.createObjectURL(new Blob([await unpacked("#worker")], { type: "text/javascript" })))();

async function newWorker() {
  worker?.terminate();
  worker = new Worker(await script);
  worker.busy = false;
  worker.onmessage = ({ data }) => hear(data);
  worker.onerror = (event) => hear({ kind: "failure", text: event.message ?? "its worker did not start" });
  worker.postMessage({ shipped: await shipped });
}

// Choices

function choice(group, value, content, checked) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: group, value, checked });
  label.append(input, content);
  $(`#${group}`).append(label);
}

function build() {
  index.photos.forEach(({ title, source }, place) => {
    const image = Object.assign(new Image(), { src: source, alt: title });
    choice("photos", String(place), image, place === 0);
  });
  const own = Object.assign(document.createElement("label"), { className: "own", textContent: "Your own" });
  own.append(Object.assign(document.createElement("input"), { type: "file", accept: "image/*", id: "file" }));
  $("#photos").append(own);
  for (const [name, { title }] of Object.entries(index.networks)) $("#network").append(new Option(title, name));
  showRatios();
}

function showRatios() {
  const chosen = Number($("#ratios :checked")?.value ?? index.networks[$("#network").value].sampling[0].ratio);
  const ratios = index.networks[$("#network").value].sampling.map(({ ratio }) => ratio);
  document.querySelectorAll("#ratios label").forEach((label) => label.remove());
  const kept = ratios.includes(chosen) ? chosen : ratios[0];
  for (const ratio of ratios) choice("ratios", String(ratio), `${Math.round(ratio * 100)} %`, ratio === kept);
}

// Photographs

// Luminance of BT.601 in whole numbers, as OpenCV and the package compute it; an alpha channel is ignored.
async function read(blob) {
  const whole = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const scale = Math.min(1, LARGEST / Math.max(whole.width, whole.height));
  const width = Math.max(2, Math.round(whole.width * scale));
  const height = Math.max(2, Math.round(whole.height * scale));
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const image = Float32Array.from({ length: width * height }, (_, pixel) => {
    const [red, green, blue] = data.subarray(4 * pixel, 4 * pixel + 3);
    return ((4899 * red + 9617 * green + 1868 * blue + 8192) >> 14) / 255;
  });
  return { image, width, height, smaller: scale < 1 };
}

async function take(blob) {
  try {
    photo = await read(blob);
  } catch {
    return fail("This file is no picture that the browser can read; try a PNG or JPEG file.");
  }
  await run();
}

// Pictures

function draw(id, width, height, grey) {
  const canvas = $(`#${id} canvas`);
  Object.assign(canvas, { width, height });
  const pixels = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel++) {
    pixels.data.fill(Math.round(255 * Math.min(1, Math.max(0, grey(pixel)))), 4 * pixel, 4 * pixel + 3);
    pixels.data[4 * pixel + 3] = grey.seen && !grey.seen(pixel) ? 0 : 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  $(`#${id}`).classList.remove("waiting");
}

// One tile for each weighted sum, of a pixel for each block, side by side in about a square.
function drawMeasurements({ y, rows, count }) {
  const across = Math.ceil(photo.width / index.block);
  const down = count / across;
  const columns = Math.max(1, Math.round(Math.sqrt((rows * down) / across)));
  const width = columns * (across + 1) - 1;
  const height = Math.ceil(rows / columns) * (down + 1) - 1;
  const spread = 5 * Math.sqrt(y.reduce((sum, value) => sum + value * value, 0) / y.length);
  const place = (pixel) => {
    const [row, column] = [Math.floor(pixel / width), pixel % width];
    const [inRow, inColumn] = [row % (down + 1), column % (across + 1)];
    const tile = Math.floor(row / (down + 1)) * columns + Math.floor(column / (across + 1));
    if (inRow === down || inColumn === across || tile >= rows) return -1;
    return (inRow * across + inColumn) * rows + tile;
  };
  const grey = (pixel) => 0.5 + y[place(pixel)] / spread;
  grey.seen = (pixel) => place(pixel) >= 0;
  draw("measurements", width, height, grey);
  const numbers = (rows * count).toLocaleString("en");
  caption("measurements", `${numbers} numbers, ${rows} for each block`);
}

function caption(id, text, title) {
  $(`#${id} span`).textContent = text;
  if (title) $(`#${id} b`).textContent = title;
}

function share(id, value) {
  $(`#${id} .frame`).style.setProperty("--share", value);
}

function say(text) {
  $("#state").className = "";
  $("#state").textContent = text;
}

function fail(text) {
  clearInterval(ticking);
  $("#state").className = "failed";
  $("#state").textContent = text;
}

// Running

async function run() {
  clearInterval(ticking);
  const [network, ratio] = [$("#network").value, Number($("#ratios :checked").value)];
  request = { ...photo, network, ratio };
  const own = request;
  const { image, width, height, smaller } = photo;
  draw("original", width, height, (pixel) => image[pixel]);
  caption("original", `${width} × ${height} pixels${smaller ? ", made smaller" : ""}`);
  caption("network-result", "", index.networks[network].title);
  for (const id of ["measurements", "linear", "tv", "network-result"]) {
    $(`#${id}`).classList.add("waiting");
    share(id, 0);
    caption(id, "");
  }
  say("Measuring …");
  if (!worker || worker.busy) await newWorker();
  if (own !== request) return; // something else was chosen meanwhile
  worker.busy = true;
  worker.postMessage({ image, width, height, network, ratio });
}

function hear(data) {
  if (data.kind === "failure") fail(`This browser could not do it: ${data.text}`);
  if (data.kind === "measurements") {
    drawMeasurements(data);
    say("Rebuilding by total variation …");
  }
  if (data.kind === "progress" && data.of === "tv") share("tv", data.share);
  if (data.kind === "progress" && data.of === "network") expect(data.multiplications);
  if (data.kind === "result") show(data);
}

// A network says nothing on its way, so the bar goes by what it should take.
function expect(multiplications) {
  const [started, seconds] = [performance.now(), multiplications / speed];
  request.multiplications = multiplications;
  clearInterval(ticking);
  const tick = () => {
    const passed = (performance.now() - started) / 1000;
    share("network-result", Math.min(0.97, passed / seconds));
    const left = Math.ceil(seconds - passed);
    say(`Rebuilding by the network ${left > 0 ? `, about ${left} s left` : "…"}`.replace(" ,", ","));
  };
  tick();
  ticking = setInterval(tick, 250);
}

function show({ of, estimate, psnr, seconds }) {
  const id = of === "network" ? "network-result" : of;
  draw(id, photo.width, photo.height, (pixel) => estimate[pixel]);
  caption(id, `${psnr.toFixed(2)} dB`);
  share(id, 0);
  $(`#${id}`).dataset.psnr = psnr;
  if (of !== "network") return;
  clearInterval(ticking);
  worker.busy = false;
  speed = request.multiplications / seconds;
  say(`Done; the network took ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s.`);
  document.dispatchEvent(new Event("done"));
}

addEventListener("change", async (event) => {
  if (event.target.id === "file") {
    if (!event.target.files.length) return;
    document.querySelectorAll("#photos :checked").forEach((input) => (input.checked = false));
    return take(event.target.files[0]);
  }
  if (event.target.id === "network") showRatios();
  if (event.target.name === "photos") return take(await (await fetch(index.photos[event.target.value].source)).blob());
  return photo && run();
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  document.querySelectorAll("#photos :checked").forEach((input) => (input.checked = false));
  take(file);
});

build();
fetch(index.photos[0].source).then(async (answer) => take(await answer.blob()));
