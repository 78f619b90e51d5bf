"use strict";
// Images are {width, height, data}: RGB bytes, row by row. Points are [x, y] in pixels; [0, 0] is
// the upper left corner, and the middle of the first pixel is [0.5, 0.5]. Sizes, steps and constants
// are those of agejax/faces/detection.py and agejax/data/sources.py, whose crops these must equal.

const byId = (id) => document.getElementById(id);
const info = JSON.parse(byId("info").textContent);
const { coarse, fine, multiple, stride, least, overlap, same } = info.detector ?? {};
const GREY = 114;

// ------------------------------------------------------------------------------ what the page holds

/** The bytes of a block of the page, which are gzipped and in base64. */
async function unpack(id) {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  byId(id).remove(); // its text is as large as all else
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Starts the runtime: {model, detector: a session, or null where the page has none}. */
async function start() {
  const loader = new Blob([await unpack("loader")], { type: "text/javascript" });
  ort.env.wasm.numThreads = 1; // more would need a server that isolates the page
  ort.env.wasm.wasmBinary = (await unpack("wasm")).buffer;
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(loader) };
  const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
  // Weights that are int8 alone become float32 once, not at every picture.
  if (info.weights_only) options.extra = { session: { disable_quant_qdq: "1" } };
  const session = async (id) => ort.InferenceSession.create(await unpack(id), options);
  return {
    model: await session("model"),
    detector: info.detector === null ? null : await session("detector"),
  };
}

// ------------------------------------------------------------------------------------------- images

/** An image file, a canvas or a video as an image. */
async function read(source) {
  const bitmap = await createImageBitmap(source, {
    imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none",
  });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { width, height, data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const image = blank(width, height);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    image.data[j++] = data[i]; image.data[j++] = data[i + 1]; image.data[j++] = data[i + 2];
  }
  return image;
}

function blank(width, height) {
  return { width, height, data: new Uint8ClampedArray(3 * width * height) };
}

/** The image on a canvas. */
function drawn({ width, height, data }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pixels = new ImageData(width, height);
  for (let i = 0, j = 0; j < data.length; i += 4) {
    pixels.data[i] = data[j++]; pixels.data[i + 1] = data[j++]; pixels.data[i + 2] = data[j++];
    pixels.data[i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** The weights of bicubic interpolation (a = -3/4) at a distance in 0..1 behind the second of four. */
function cubic(t) {
  const a = -0.75;
  const near = (x) => ((a + 2) * x - (a + 3)) * x * x + 1;
  const far = (x) => ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  return [far(1 + t), near(t), near(1 - t), far(2 - t)];
}

/** For each of `to` pixels along an axis of `from`: [first source pixel, weights]. */
const TAPS = {
  area: (from, to) => Array.from({ length: to }, (_, i) => {
    const scale = from / to, start = i * scale, end = Math.min((i + 1) * scale, from);
    const first = Math.floor(start + 1e-9), last = Math.min(Math.ceil(end - 1e-9), from);
    const weights = [];
    for (let k = first; k < last; k++) {
      weights.push((Math.min(k + 1, end) - Math.max(k, start)) / (end - start));
    }
    return [first, weights];
  }),
  linear: (from, to) => Array.from({ length: to }, (_, i) => {
    const x = (i + 0.5) * from / to - 0.5;
    return [Math.floor(x), [1 - x + Math.floor(x), x - Math.floor(x)]];
  }),
  cubic: (from, to) => Array.from({ length: to }, (_, i) => {
    const x = (i + 0.5) * from / to - 0.5;
    return [Math.floor(x) - 1, cubic(x - Math.floor(x))];
  }),
};

/** The image in another size; beyond its border the border goes on. */
function resize(image, width, height, method) {
  const across = TAPS[method](image.width, width), down = TAPS[method](image.height, height);
  const rows = new Float32Array(3 * width * image.height);
  const inside = (k, length) => Math.min(Math.max(k, 0), length - 1);
  for (let y = 0, at = 0; y < image.height; y++) {
    for (const [first, weights] of across) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * image.data[3 * (y * image.width + inside(first + k, image.width)) + c];
        }
        rows[at++] = sum;
      }
    }
  }
  const result = blank(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    const [first, weights] = down[y];
    for (let x = 0; x < 3 * width; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) {
        sum += weights[k] * rows[3 * width * inside(first + k, image.height) + x];
      }
      result.data[at++] = sum; // which rounds and cuts to 0..255
    }
  }
  return result;
}

/** The centre square in `size` pixels: what the model sees of a crop. */
function square(image, size) {
  const edge = Math.min(image.width, image.height);
  const top = Math.floor((image.height - edge) / 2), left = Math.floor((image.width - edge) / 2);
  const cut = blank(edge, edge);
  for (let y = 0; y < edge; y++) {
    const from = 3 * ((top + y) * image.width + left);
    cut.data.set(image.data.subarray(from, from + 3 * edge), 3 * y * edge);
  }
  return edge === size ? cut : resize(cut, size, size, size < edge ? "area" : "cubic");
}

// -------------------------------------------------------------------------------------------- faces

/** The cells of CenterFace's outputs that hold a face: [{box: [l, t, r, b], points, score}]. */
function decode(scores, sizes, offsets, landmarks, rows, columns) {
  const area = rows * columns, faces = [];
  for (let i = 0; i < area; i++) {
    if (scores[i] < least) continue;
    const y = Math.floor(i / columns), x = i % columns;
    const height = stride * Math.exp(sizes[i]), width = stride * Math.exp(sizes[area + i]);
    const top = stride * (y + 0.5 + offsets[i]) - height / 2;
    const left = stride * (x + 0.5 + offsets[area + i]) - width / 2;
    const points = [0, 1, 2, 3, 4].map((k) => [
      left + width * landmarks[(2 * k + 1) * area + i], top + height * landmarks[2 * k * area + i],
    ]);
    faces.push({ box: [left, top, left + width, top + height], points, score: scores[i] });
  }
  return faces;
}

/** The faces of an image with its longest edge at so many pixels, in the image's own pixels. */
async function search(detector, image, edge) {
  const factor = edge / Math.max(image.width, image.height);
  const width = Math.max(Math.round(image.width * factor), 1);
  const height = Math.max(Math.round(image.height * factor), 1);
  const same = width === image.width && height === image.height;
  const small = same ? image : resize(image, width, height, factor < 1 ? "area" : "linear");
  const wide = Math.ceil(width / multiple) * multiple;
  const high = Math.ceil(height / multiple) * multiple;
  const input = new Float32Array(3 * high * wide).fill(GREY);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        input[(c * high + y) * wide + x] = small.data[3 * (y * width + x) + c];
      }
    }
  }
  const tensor = new ort.Tensor("float32", input, [1, 3, high, wide]);
  const out = await detector.run({ [detector.inputNames[0]]: tensor });
  const maps = info.detector.outputs.map((name) => out[name].data);
  const [sx, sy] = [image.width / width, image.height / height];
  return decode(...maps, high / stride, wide / stride).map(({ box, points, score }) => ({
    box: [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy],
    points: points.map(([x, y]) => [x * sx, y * sy]),
    score,
  }));
}

const size = ([left, top, right, bottom]) => (right - left) * (bottom - top);

/** Greedy non-maximum suppression: the faces that remain, the highest score first. */
function suppress(faces) {
  const kept = [];
  for (const face of faces.toSorted((a, b) => b.score - a.score)) {
    const [l, t, r, b] = face.box;
    const free = kept.every(({ box }) => {
      const across = Math.max(Math.min(r, box[2]) - Math.max(l, box[0]), 0);
      const both = across * Math.max(Math.min(b, box[3]) - Math.max(t, box[1]), 0);
      return both <= overlap * (size(face.box) + size(box) - both);
    });
    if (free) kept.push(face);
  }
  return kept;
}

/** The faces of an image, the largest first, with boxes inside it. */
async function find(detector, image) {
  const longest = Math.max(image.width, image.height);
  const edges = longest <= 2 * coarse ? [coarse] : [coarse, Math.min(longest, fine)];
  const found = [];
  for (const edge of edges) found.push(...await search(detector, image, edge));
  const cut = (x, end) => Math.min(Math.max(x, 0), end);
  return suppress(found)
    .map((face) => ({
      ...face, box: face.box.map((x, i) => cut(x, i % 2 ? image.height : image.width)),
    }))
    .sort((a, b) => size(b.box) - size(a.box));
}

const mean = (points) => [0, 1].map((i) => points.reduce((sum, p) => sum + p[i], 0) / points.length);

/** The similarity z -> a z + b that moves points nearest to others (least squares): [a, b], complex. */
function similarity(source, target) {
  const m = mean(source), n = mean(target);
  let re = 0, im = 0, spread = 0;
  source.forEach(([x, y], i) => {
    const [u, v] = [x - m[0], y - m[1]], [s, t] = [target[i][0] - n[0], target[i][1] - n[1]];
    re += u * s + v * t; im += u * t - v * s; spread += u * u + v * v;
  });
  const a = [re / spread, im / spread];
  return [a, [n[0] - a[0] * m[0] + a[1] * m[1], n[1] - a[1] * m[0] - a[0] * m[1]]];
}

/** The template of the training images, in pixels of a crop of `edge`. */
const template = (edge) => info.detector.landmarks.map(([x, y]) => [x * edge, y * edge]);

const move = ([a, b], [x, y]) => [a[0] * x - a[1] * y + b[0], a[1] * x + a[0] * y + b[1]];

/** The crop in which the face lies as in the training images. */
function align(image, points, edge) {
  const back = similarity(points, template(edge)); // then inverted
  const norm = back[0][0] ** 2 + back[0][1] ** 2;
  const a = [back[0][0] / norm, -back[0][1] / norm];
  const b = move([a, [0, 0]], [-back[1][0], -back[1][1]]);
  const step = Math.min(Math.hypot(...a), Math.max(image.width, image.height) / edge);
  const times = Math.max(Math.ceil(step - 1e-6), 1); // samples a pixel, in x and in y
  const samples = blank(times * edge, times * edge);
  for (let v = 0, at = 0; v < samples.height; v++) {
    for (let u = 0; u < samples.width; u++, at += 3) {
      const [x, y] = move([a, b], [(u + 0.5) / times, (v + 0.5) / times]);
      sample(image, x - 0.5, y - 0.5, samples.data, at);
    }
  }
  return times === 1 ? samples : resize(samples, edge, edge, "area");
}

/** Writes the bicubic sample at x, y, counted from the middle of the first pixel. */
function sample({ width, height, data }, x, y, out, at) {
  const left = Math.floor(x), top = Math.floor(y);
  const across = cubic(x - left), down = cubic(y - top);
  let r = 0, g = 0, b = 0;
  for (let j = 0; j < 4; j++) {
    const row = Math.min(Math.max(top - 1 + j, 0), height - 1) * width;
    for (let i = 0; i < 4; i++) {
      const from = 3 * (row + Math.min(Math.max(left - 1 + i, 0), width - 1));
      const weight = down[j] * across[i];
      r += weight * data[from]; g += weight * data[from + 1]; b += weight * data[from + 2];
    }
  }
  out[at] = r; out[at + 1] = g; out[at + 2] = b;
}

/** The face's points again, found in its own upright crop; as they were where that shows no face. */
async function refine(detector, image, face) {
  const crop = align(image, face.points, coarse);
  const [x, y] = mean(template(coarse));
  const moved = (await search(detector, crop, coarse)).map(({ points }) => {
    const [u, v] = mean(points);
    return { points, far: Math.hypot(u - x, v - y) };
  });
  const nearest = moved.sort((a, b) => a.far - b.far)[0];
  if (!nearest || nearest.far >= same * coarse) return face.points;
  const back = similarity(template(coarse), face.points);
  return nearest.points.map((point) => move(back, point));
}

/** Every face of a photo, the largest first, as the crop that the model sees. */
async function crops(detector, image) {
  const result = [];
  for (const face of await find(detector, image)) {
    result.push(align(image, await refine(detector, image, face), info.size));
  }
  return result;
}

// ------------------------------------------------------------------------------------------ answers

/** {ages: {label: {years, low, high}}, classes: {label: [[name, probability]]}} of a crop. */
async function predict(model, crop) {
  const input = new ort.Tensor("uint8", new Uint8Array(crop.data), [1, info.size, info.size, 3]);
  const out = await model.run({ images: input });
  const ages = {}, classes = {};
  for (const label of info.ages) {
    const years = out[label].data[0], sigma = out[`${label}_sigma`]?.data[0];
    ages[label] = { years, ...interval(label, years, sigma) };
  }
  for (const [label, names] of Object.entries(info.classes)) {
    const p = scaled(Array.from(out[label].data), info.temperatures[label] ?? 1);
    classes[label] = names.map((name, i) => [name, p[i]]);
  }
  return { ages, classes };
}

/** The calibrated interval of an age; {} where the run has no calibration. */
function interval(label, years, sigma) {
  const widths = info.widths[label];
  if (!widths) return {};
  const decade = Math.min(Math.floor(years / 10), widths.decades.length - 1);
  const q = (decade < 0 ? widths.all : widths.decades[decade]) ?? Infinity;
  const half = q * (sigma === undefined ? 1 : Math.max(sigma, info.smallest_sigma));
  const [low, high] = info.range;
  const cut = (x) => Math.min(Math.max(x, low), high);
  return { low: cut(years - half), high: cut(years + half) };
}

/** softmax(log p / t). */
function scaled(p, t) {
  const logits = p.map((x) => Math.log(Math.max(x, 2 ** -126)) / t);
  const top = Math.max(...logits), e = logits.map((x) => Math.exp(x - top));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

// --------------------------------------------------------------------------------------- the page

const state = byId("state");
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const data = (name, value, text) => {
  const made = element("data", { value: String(value) }, text);
  made.dataset.name = name;
  return made;
};

/** Adds a face to the results. */
function show(name, crop, { ages, classes }) {
  const said = element("div");
  for (const [label, { years, low, high }] of Object.entries(ages)) {
    const line = element("p", { className: "age" }, `${label.replaceAll("_", " ")} `);
    line.append(data(label, years, `${Math.round(years)} years`));
    if (low !== undefined) {
      line.append(" (", data(`${label}_low`, low, low.toFixed(0)), " to ",
        data(`${label}_high`, high, high.toFixed(0)), ")");
    }
    said.append(line);
  }
  for (const [label, pairs] of Object.entries(classes)) {
    const list = element("dl");
    list.setAttribute("aria-label", label);
    for (const [item, p] of pairs) {
      const percent = data(`${label}_${item}`, p, `${(100 * p).toFixed(0)} %`);
      list.append(element("dt", {}, item), element("dd", {}, percent));
    }
    said.append(element("p", {}, `${label.replaceAll("_", " ")}:`), list);
  }
  const canvas = drawn(crop);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The face as the model sees it");
  said.prepend(element("p", {}, name));
  byId("results").append(element("li", {}, element("article", {}, canvas, said)));
}

const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const loaded = start();
let queue = loaded; // one picture after the other

/** Predicts pictures {name, source: file, canvas or video}, and shows their faces. */
function take(pictures) {
  const photos = info.detector !== null && document.forms[0].kind.value === "photos";
  queue = queue.then(async () => {
    const { model, detector } = await loaded;
    let faces = 0;
    const faceless = [], unreadable = [];
    for (const [i, { name, source }] of pictures.entries()) {
      state.textContent = `Picture ${i + 1} of ${pictures.length} …`;
      await new Promise((resolve) => setTimeout(resolve)); // the browser shows it
      let image;
      try {
        image = await read(source);
      } catch {
        unreadable.push(name);
        continue;
      }
      const found = photos ? await crops(detector, image) : [square(image, info.size)];
      for (const crop of found) show(name, crop, await predict(model, crop));
      faces += found.length;
      if (!found.length) faceless.push(name);
    }
    const notes = [`${plural(faces, "face")} in ${plural(pictures.length, "picture")}.`];
    if (faceless.length) notes.push(`No face found in ${faceless.join(", ")}.`);
    if (unreadable.length) notes.push(`Cannot be read: ${unreadable.join(", ")}.`);
    state.textContent = notes.join(" ");
  }).catch(failed);
}

function failed(error) {
  state.textContent = `This does not work here: ${error.message ?? error}`;
}

function takeFiles({ target }) {
  const files = [...target.files].filter(({ type }) => type.startsWith("image/"));
  if (files.length) take(files.map((file) => ({ name: file.webkitRelativePath || file.name, source: file })));
  else if (target.files.length) state.textContent = "There is no picture among these files.";
  target.value = ""; // so that the same file can be chosen again
}

const video = byId("video");

async function openCamera() {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
    byId("take").disabled = true; // there is no picture before the video plays
    byId("live").hidden = false;
    await video.play();
    byId("take").disabled = false;
    byId("take").focus();
  } catch (error) {
    state.textContent = `The camera cannot be used: ${error.message}`;
  }
}

function closeCamera() {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
  byId("live").hidden = true;
  byId("camera").focus();
}

byId("files").addEventListener("change", takeFiles);
byId("folder").addEventListener("change", takeFiles);
byId("camera").addEventListener("click", openCamera);
byId("stop").addEventListener("click", closeCamera);
byId("take").addEventListener("click", async () => {
  // The picture of now, not of when its turn comes.
  take([{ name: "camera", source: await createImageBitmap(video) }]);
});
byId("clear").addEventListener("click", () => byId("results").replaceChildren());
byId("kind").hidden = info.detector === null;
byId("no-detector").hidden = info.detector !== null;
document.forms[0].addEventListener("submit", (event) => event.preventDefault());
loaded.then(() => { state.textContent = "Ready."; }).catch(failed);
