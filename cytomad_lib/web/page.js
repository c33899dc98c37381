// Runs the generator in the browser, and shows one cell as the microscopes of all days image it.
//
// page.json says what there is; cells.bin.gz holds the images as whole numbers of steps; a network maps
// (brightfield, shift of the bottleneck, skip connections kept) to phase. The three are written by
// cytomad_lib/try_page.py. What is shown is also in `globalThis.shown`, for the console and tests.
import * as ort from "./ort.wasm.min.mjs";

const find = (id) => document.getElementById(id);
const networks = {}; // name of a stage -> its session
let page, planes, pixels, sliders, running = false, outdated = false;

async function fetched(file) {
  const answer = await fetch(file);
  if (!answer.ok) throw new Error(`The server answered ${answer.status} for ${file}.`);
  return answer;
}

async function unpacked(file) {
  const stream = (await fetched(`${file}.gz`)).body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function start() {
  ort.env.wasm.numThreads = 1; // more would need a server that isolates the page
  const files = ["ort-wasm-simd-threaded.wasm", "cells.bin"];
  const [json, wasm, cells] = await Promise.all([fetched("page.json"), ...files.map(unpacked)]);
  page = await json.json();
  pixels = page.size ** 2;
  planes = new Int16Array(cells);
  ort.env.wasm.wasmBinary = wasm;
  addControls();
  drawScales();
  for (const [i, { name }] of page.stages.entries()) {
    networks[name] = await ort.InferenceSession.create(await unpacked(`${name}.onnx`));
    find("stage").options[i].disabled = false;
    if (i === 0) await update(); // the first image does not wait for the other networks
  }
}

function addControls() {
  for (const { line, day } of page.cells) find("cell").add(new Option(`${line}, cell of ${day}`));
  for (const { title } of page.stages) find("stage").add(new Option(title));
  for (const option of find("stage").options) option.disabled = true; // until it is loaded
  find("days").innerHTML = page.days.map((day, i) => `<tr><th scope="row"><label>
    <input type="radio" name="day" value="${i}" ${i ? "" : "checked"}> ${day}</label></th>
    <td></td><td></td></tr>`).join("");
  find("sliders").innerHTML = Array.from({ length: page.components }, (_, i) => `<label>
    Component ${i + 1}<input type="range" min="-3" max="3" step="0.1" value="0"><output></output>
    </label>`).join("");
  sliders = [...find("sliders").querySelectorAll("input")];
  document.addEventListener("input", () => update().catch(report));
  find("reset").addEventListener("click", () => {
    for (const slider of sliders) slider.value = 0;
    find("skips").checked = true;
    update().catch(report);
  });
}

// The images of a kind of one cell, all days one after the other: Float32Array.
function imagesOf(cell, kind) {
  let first = cell * page.planes.reduce((sum, [, count]) => sum + count, 0);
  for (const [name, count, step] of page.planes) {
    if (name === kind) {
      const part = planes.subarray(first * pixels, (first + count) * pixels);
      return Float32Array.from(part, (steps) => steps * step);
    }
    first += count;
  }
}

async function predict(session, brightfield, shift, kept) {
  const n = page.days.length;
  const inputs = {
    brightfield: new ort.Tensor(brightfield, [n, page.size, page.size, 1]),
    shift: new ort.Tensor(Float32Array.from({ length: n * shift.length },
      (_, i) => shift[i % shift.length]), [n, shift.length]),
    skips: new ort.Tensor(new Float32Array(n).fill(kept), [n, 1, 1, 1]),
  };
  return (await session.run(inputs))[session.outputNames[0]].data;
}

// One prediction at a time; what was changed meanwhile is predicted afterwards.
async function update() {
  outdated = true;
  if (running) return;
  running = true;
  try {
    while (outdated) {
      outdated = false;
      await show();
    }
  } finally {
    running = false;
  }
}

async function show() {
  const cell = find("cell").selectedIndex, stage = page.stages[find("stage").selectedIndex];
  const day = Number(document.querySelector("input[name=day]:checked").value);
  const kinds = page.planes.map(([kind]) => kind);
  const images = Object.fromEntries(kinds.map((kind) => [kind, imagesOf(cell, kind)]));
  const shift = sliders.map((slider) => Number(slider.value));
  const kept = find("skips").checked ? 1 : 0;
  images.predicted = await predict(networks[stage.name], images.brightfield, shift, kept);

  const one = (kind) => {
    const at = images[kind].length > pixels ? day * pixels : 0;
    return images[kind].subarray(at, at + pixels);
  };
  for (const kind of ["brightfield", "predicted", "measured", "truth"]) {
    draw(find(kind), one(kind), page.size, kind === "brightfield" ? "brightfield" : "phase");
    describe(find(kind), one(kind), kind);
  }
  const masses = massesOf(images);
  showMasses(masses);
  const truth = one("truth");
  const error = one("predicted").reduce((sum, p, i) => sum + Math.abs(p - truth[i]), 0) / pixels;
  sliders.forEach((slider) => { slider.nextElementSibling.value = Number(slider.value).toFixed(1); });
  find("result").value = `${page.cells[cell].line} on ${page.days[day]}, ${stage.title}: dry mass `
    + `${masses.predicted[day].toFixed(0)} pg, in truth ${masses.truth[0].toFixed(0)} pg; mean error `
    + `of the image ${error.toFixed(3)} rad.`;
  const image = Array.from(one("predicted"));
  globalThis.shown = { cell, day, stage: stage.name, shift, kept, image, masses, error };
}

// Dry mass in pg on each day: the phase summed up inside the cell (Barer 1952).
function massesOf({ inside, ...images }) {
  const masses = {};
  for (const kind of ["predicted", "measured", "truth"]) {
    masses[kind] = new Array(images[kind].length / pixels).fill(0);
    images[kind].forEach((phase, i) => {
      masses[kind][Math.floor(i / pixels)] += phase * inside[i % pixels] * page.pg_per_rad;
    });
  }
  return masses;
}

function showMasses({ predicted, measured, truth }) {
  const range = (values) => Math.max(...values) - Math.min(...values);
  const rows = [...find("days").rows, document.querySelector("tfoot tr")];
  rows.forEach((row, i) => [predicted, measured].forEach((values, column) => {
    const value = i < values.length ? values[i] : range(values);
    row.cells[column + 1].textContent = value.toFixed(0);
  }));
  find("mass").textContent = `Truth: ${truth[0].toFixed(0)} pg on each day.`;
}

function draw(canvas, values, width, scale) {
  const [low, high] = page.limits[scale];
  canvas.width = width;
  canvas.height = values.length / width;
  const drawn = new ImageData(width, canvas.height);
  values.forEach((value, i) => {
    const level = Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low))));
    const colour = scale === "phase" ? page.colours[level] : [level, level, level];
    drawn.data.set([...colour, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(drawn, 0, 0);
}

function describe(canvas, values, kind) {
  const unit = kind === "brightfield" ? "relative brightness" : "rad";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${canvas.nextElementSibling.textContent}: `
    + `${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)} ${unit}`);
}

function drawScales() {
  for (const [id, scale] of [["grey", "brightfield"], ["phase", "phase"]]) {
    const [low, high] = page.limits[scale];
    draw(find(id), Float32Array.from({ length: 256 }, (_, i) => low + (i / 255) * (high - low)), 256, scale);
    find(`${id}-low`).textContent = low.toFixed(1);
    find(`${id}-high`).textContent = high.toFixed(1);
  }
  const width = () => { // of 10 µm at the size at which the images are shown
    find("bar").style.width = `${(find("truth").clientWidth * 10) / page.field_um}px`;
  };
  addEventListener("resize", width);
  width();
}

function report(error) {
  find("result").value = `The page does not work: ${error.message} Load it again; it needs a `
    + "browser of 2023 or later, and all files of its folder on the same server.";
}

start().catch(report);
