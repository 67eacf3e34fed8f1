// What this bundle's model says of raw RGB bytes: node examples/infer.mjs photo.rgb WIDTH HEIGHT
// Needs Node 18 or newer and, in the bundle or a folder above it, `npm install onnxruntime-node` (1.22 or newer;
// ONNXRUNTIME_NODE_INSTALL=skip in the environment keeps it to the CPU). Without arguments it runs the bundle's test vectors and prints PASS.
//
// Raw bytes of a photo, upright, transparency over white, with `npm install sharp`:
//   const { data, info } = await sharp("photo.jpg", { ignoreIcc: true }).rotate()
//     .flatten({ background: "white" }).toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
//   await answers(data, info.width, info.height);
// `ignoreIcc`, of sharp 0.33 or newer: training took pixels as they are, without the colour profile of their file. CMYK
// sharp converts by a profile all the same, and gets other colours than the model was trained on: use infer.py for it.

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const usage = "usage: node examples/infer.mjs PHOTO.rgb WIDTH HEIGHT, raw RGB bytes, 3 a pixel, row by row";
if (process.argv.slice(2).some((argument) => ["-h", "--help"].includes(argument))) {
  console.log(`${usage}; without arguments it runs the test vectors`);
  process.exit(0);
}
process.env.ORT_DISABLE_TELEMETRY ??= "1"; // else onnxruntime from 1.29 on sends events to its maker
const { default: ort } = await import("onnxruntime-node").catch((error) => {
  const why = error.message.replace(/\s+/g, " ");
  console.error(`${why}; run this in the bundle or a folder above it: npm install onnxruntime-node`);
  process.exit(2);
});
const bundle = join(dirname(fileURLToPath(import.meta.url)), "..");
const json = (name) => JSON.parse(readFileSync(join(bundle, name), "utf8"));
const { session, labels } = await opened().catch((error) => {
  const why = error.message.replace(/\s+/g, " ");
  console.error(`the bundle is not whole: ${why}; verify.py tells more`);
  process.exit(1);
});
const batched = session.inputMetadata[0].shape.length === 4;

async function opened() {
  const file = join(bundle, "model.onnx");
  const session = await ort.InferenceSession.create(file, { logSeverityLevel: 4 });
  const labels = json("labels.json");
  if (JSON.stringify(labels) !== JSON.stringify(labelsIn(readFileSync(file)))) {
    throw new Error("labels.json differs from the labels in model.onnx's metadata");
  }
  return { session, labels };
}

// The labels in the model's metadata, which onnxruntime-node does not give: after the key come a tag (0x12), the length
// of the text in groups of seven bits, the lowest first, and the text, which is JSON.
function labelsIn(model) {
  const key = "\n\rautoft.labels\x12";
  let at = model.lastIndexOf(key) + key.length;
  let [length, unit] = [0, 1];
  for (let more = true; more; unit *= 128, at += 1) {
    length += (model[at] & 127) * unit;
    more = model[at] > 127;
  }
  return JSON.parse(model.toString("utf8", at, at + length));
}

// Every output by name. One number a name of labels.json: `probabilities`, or `values` where numbers are predicted;
// where an image may have any of the labels, `present` is 1 for those that it has.
async function answers(rgb, width, height) {
  const dims = batched ? [1, height, width, 3] : [height, width, 3];
  const outputs = await session.run({ image: new ort.Tensor("uint8", rgb, dims) });
  return Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, Array.from(data, Number)]));
}

function inWords({ probabilities, present, values }) {
  if (values) return labels.map((label, index) => `${label} ${Number(values[index].toPrecision(6))}`).join(", ");
  if (present) {
    const found = labels.map((label, index) => present[index] && `${label} ${probabilities[index].toFixed(4)}`);
    return found.filter(Boolean).join(", ") || "no label";
  }
  const best = Math.max(...probabilities);
  return `${labels[probabilities.indexOf(best)]} ${best.toFixed(4)}`;
}

const [photo, width, height, ...more] = process.argv.slice(2);
if (more.length) {
  console.error(`one photo a call, what is ${more[0]}? ${usage}`);
  process.exit(2);
}
if (photo) {
  const found = existsSync(photo) ? `has ${statSync(photo).size} bytes` : "does not exist";
  const sizes = [width, height].every((size) => /^[1-9][0-9]*$/.test(size));
  if (!sizes || found !== `has ${width * height * 3} bytes`) {
    console.error(`${photo} ${found}, expected ${width ?? "WIDTH"} * ${height ?? "HEIGHT"} * 3; ${usage}`);
    process.exit(2);
  }
  const answer = await answers(readFileSync(photo), Number(width), Number(height));
  console.log(`${photo}: ${inWords(answer)}`);
} else if (!existsSync(join(bundle, "test_vectors/vectors.json"))) {
  console.error(`there are no test vectors here, they were left out; ${usage}`);
  process.exit(1);
} else {
  const { vectors, tolerance, units = [] } = json("test_vectors/vectors.json");
  for (const vector of vectors) {
    const answer = await answers(readFileSync(join(bundle, vector.rgb)), vector.width, vector.height);
    const kind = answer.values ? "values" : "probabilities";
    const [found, expected] = [answer[kind], vector[kind]];
    if (!expected.every((value, index) => Math.abs(value - found[index]) <= tolerance * (units[index] ?? 1))) {
      console.error(`FAIL: ${vector.name} gives ${found}, expected ${expected}`);
      process.exit(1);
    }
  }
  console.log(`PASS: ${vectors.length} vector${vectors.length === 1 ? "" : "s"}`);
  console.error(usage);
}
