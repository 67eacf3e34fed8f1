// Classify raw RGB bytes with this bundle: node examples/infer.mjs photo.rgb WIDTH HEIGHT
// Needs Node 18 or newer and, in the bundle or a folder above it, `npm install onnxruntime-node` (1.21 or newer;
// ONNXRUNTIME_NODE_INSTALL=skip in the environment keeps it to the CPU). Without arguments it runs the bundle's test vectors and prints PASS.
//
// Raw bytes of a photo, upright, transparency over white, with `npm install sharp`:
//   const { data, info } = await sharp("photo.jpg").rotate().flatten({ background: "white" })
//     .toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
//   await probabilities(data, info.width, info.height);

import { existsSync, readFileSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";

const usage = "usage: node examples/infer.mjs PHOTO.rgb WIDTH HEIGHT, raw RGB bytes, 3 a pixel, row by row";

const bundle = join(dirname(fileURLToPath(import.meta.url)), "..");
const json = (name) => JSON.parse(readFileSync(join(bundle, name), "utf8"));
const session = await ort.InferenceSession.create(join(bundle, "model.onnx"));
const batched = session.inputMetadata[0].shape.length === 4;

async function probabilities(rgb, width, height) {
  const dims = batched ? [1, height, width, 3] : [height, width, 3];
  const answer = await session.run({ image: new ort.Tensor("uint8", rgb, dims) });
  return Array.from(answer.probabilities.data);
}

const [photo, width, height] = process.argv.slice(2);
if (photo) {
  const found = existsSync(photo) ? `has ${statSync(photo).size} bytes` : "does not exist";
  const sizes = [width, height].every((size) => /^[1-9][0-9]*$/.test(size));
  if (!sizes || found !== `has ${width * height * 3} bytes`) {
    console.error(`${photo} ${found}, expected ${width ?? "WIDTH"} * ${height ?? "HEIGHT"} * 3; ${usage}`);
    process.exit(2);
  }
  const answer = await probabilities(readFileSync(photo), Number(width), Number(height));
  const best = Math.max(...answer);
  console.log(`${photo}: ${json("labels.json")[answer.indexOf(best)]} ${best.toFixed(4)}`);
} else if (!existsSync(join(bundle, "test_vectors/vectors.json"))) {
  console.error(`there are no test vectors here, they were left out; ${usage}`);
  process.exit(1);
} else {
  const { vectors, tolerance } = json("test_vectors/vectors.json");
  for (const { name, rgb, width, height, probabilities: expected } of vectors) {
    const answer = await probabilities(readFileSync(join(bundle, rgb)), width, height);
    if (!expected.every((value, index) => Math.abs(value - answer[index]) <= tolerance)) {
      console.error(`FAIL: ${name} gives ${answer}, expected ${expected}`);
      process.exit(1);
    }
  }
  console.log(`PASS: ${vectors.length} vectors`);
  console.error(usage);
}
