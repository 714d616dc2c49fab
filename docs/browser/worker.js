"use strict";
// Runs beside the page. It is told once what came with the page, then a photograph, a network and a ratio at a time,
// and answers with each result as it is there.
let shipped;
const sessions = new Map();

onmessage = async ({ data }) => {
  try {
    if (data.shipped) start(data.shipped);
    else await reconstruct(data);
  } catch (error) {
    postMessage({ kind: "failure", text: String(error?.message ?? error) });
  }
};

function start(all) {
  shipped = all;
  runtime.env.wasm.numThreads = 1; // more need headers that a file on disk does not have
  runtime.env.wasm.wasmBinary = all.wasm;
  runtime.env.logLevel = "error";
}

async function reconstruct({ image, height, width, network, ratio }) {
  const facts = shipped.index.networks[network];
  const product = await session("product", shipped.index.product);
  multiply = async (a, b, m, k, n) => {
    const inputs = { a: new runtime.Tensor("float32", a, [m, k]), b: new runtime.Tensor("float32", b, [k, n]) };
    return (await product.run(inputs)).c.data;
  };
  const own = facts.sampling.find((entry) => entry.ratio === ratio);
  const matrix = floats(own.matrix);
  const side = shipped.index.block;
  const rows = matrix.length / (side * side);
  const blocks = new Blocks(matrix, rows, side, height, width);
  const y = await blocks.measure(image);
  postMessage({ kind: "measurements", y, rows, count: blocks.count });
  answer("linear", await blocks.estimate(halves(own.estimator), y), image);
  answer("tv", await totalVariation(y, blocks, shipped.index.tv, teller("tv")), image);
  const started = performance.now();
  postMessage({ kind: "progress", of: "network", multiplications: facts.multiplications * height * width });
  const outputs = await (await session(network, facts.graph, facts.weights)).run({
    y: new runtime.Tensor("float32", y, [1, 1, blocks.count, rows]),
    size: new runtime.Tensor("int64", BigInt64Array.of(BigInt(height), BigInt(width)), [2]),
    matrix: new runtime.Tensor("float32", matrix, [rows, side * side]),
    ratio: new runtime.Tensor("float32", Float32Array.of(ratio), []),
  });
  answer("network", outputs.x.data.slice(), image, (performance.now() - started) / 1000);
}

function answer(of, estimate, image, seconds) {
  const psnr = score(estimate, image);
  postMessage({ kind: "result", of, estimate, psnr, seconds });
}

// Tells the page of a method's progress, but not of every step.
function teller(of) {
  let said = 0;
  return (share) => {
    if (share - said < 0.02) return;
    said = share;
    postMessage({ kind: "progress", of, share });
  };
}

// What came with the page: [offset in bytes, how many].

function floats([offset, count]) {
  return new Float32Array(shipped.pool, offset, count);
}

// Numbers of 16 bits, which the linear estimate can spare.
function halves([offset, count]) {
  return Float32Array.from(new Uint16Array(shipped.pool, offset, count), (bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  });
}

async function session(name, graph, weights) {
  if (!sessions.has(name)) {
    const [proto, data] = [graph, weights].map((part) => part && new Uint8Array(shipped.pool, ...part));
    const externalData = data ? [{ path: "weights", data }] : [];
    sessions.set(name, await runtime.InferenceSession.create(proto, { executionProviders: ["wasm"], externalData }));
  }
  return sessions.get(name);
}
