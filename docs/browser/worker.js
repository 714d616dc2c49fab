"use strict";
// Runs beside the page. It is told once what came with the page, then a photograph, a network and a ratio at a time,
// and answers with each result as it is there.
let shipped;
const sessions = new Map();

onmessage = async ({ data }) => {
  try {
    if (data.shipped) await start(data.shipped);
    else await reconstruct(data);
  } catch (error) {
    postMessage({ kind: "failure", text: String(error?.message ?? error) });
  }
};

async function start(all) {
  shipped = all;
  runtime.env.wasm.numThreads = 1; // more need headers that a file on disk does not have
  runtime.env.wasm.wasmBinary = all.wasm;
  runtime.env.logLevel = "error";
  postMessage({ kind: "ready" });
}

async function reconstruct({ image, height, width, network, ratio }) {
  const facts = shipped.index.networks[network];
  const { matrix, estimator } = sampling(facts, ratio);
  const side = shipped.index.block;
  const rows = matrix.length / (side * side);
  const blocks = new Blocks(Float64Array.from(matrix), rows, side, height, width);
  const y = blocks.measure(image);
  postMessage({ kind: "measurements", y, rows, count: blocks.count });
  answer("linear", blocks.linear(estimator, y), image);
  let said = 0;
  const told = (share) => {
    if (share - said < 0.02) return;
    said = share;
    postMessage({ kind: "progress", of: "tv", share });
  };
  answer("tv", totalVariation(y, blocks, shipped.index.tv, told), image);
  const started = performance.now();
  postMessage({ kind: "progress", of: "network", multiplications: facts.multiplications * height * width });
  const session = await sessionOf(network, facts);
  const outputs = await session.run({
    y: new runtime.Tensor("float32", Float32Array.from(y), [1, 1, blocks.count, rows]),
    size: new runtime.Tensor("int64", BigInt64Array.of(BigInt(height), BigInt(width)), [2]),
    matrix: new runtime.Tensor("float32", matrix, [rows, side * side]),
    ratio: new runtime.Tensor("float32", Float32Array.of(ratio), []),
  });
  answer("network", Float64Array.from(outputs.x.data), image, (performance.now() - started) / 1000);
}

function answer(of, estimate, image, seconds) {
  const psnr = score(estimate, image);
  postMessage({ kind: "result", of, estimate, psnr, seconds });
}

// The matrix (M, B * B) and the linear estimator (B * B, M) of a ratio; a smaller ratio has the first rows of a larger.
function sampling(facts, ratio) {
  const own = facts.sampling.find((entry) => entry.ratio === ratio);
  const [offset, count] = own.matrix;
  return { matrix: new Float32Array(shipped.pool, offset, count), estimator: halves(own.estimator) };
}

// Numbers of 16 bits, which the linear estimate can spare.
function halves([offset, count]) {
  const bits = new Uint16Array(shipped.pool, offset, count);
  return Float64Array.from(bits, (value) => {
    const sign = value & 0x8000 ? -1 : 1;
    const exponent = (value >> 10) & 31;
    const fraction = value & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  });
}

async function sessionOf(name, facts) {
  if (!sessions.has(name)) {
    const [graph, weights] = [facts.graph, facts.weights].map(([offset, size]) => new Uint8Array(shipped.pool, offset, size));
    const externalData = [{ path: "weights", data: weights }];
    sessions.set(name, await runtime.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData }));
  }
  return sessions.get(name);
}
