"use strict";
// Block sampling and what needs no network: the linear estimate and total variation, as the package computes them.
// Images and matrices are Float32Array, row by row; blocks go row by row over the image, which is padded with zeros at
// the bottom and at the right. A matrix (M, B * B) has orthonormal rows.

// Promises the product of matrices (m, k) and (k, n), given as (a, b, m, k, n); worker.js brings it.
let multiply;

class Blocks {
  constructor(matrix, rows, side, height, width) {
    Object.assign(this, { matrix, rows, side, height, width });
    this.pixels = side * side;
    this.flipped = transposed(matrix, rows, this.pixels);
    this.down = Math.ceil(height / side);
    this.across = Math.ceil(width / side);
    this.count = this.down * this.across;
    this.paddedHeight = this.down * side;
    this.paddedWidth = this.across * side;
  }

  // The same sampling of the padded image.
  padded() {
    return new Blocks(this.matrix, this.rows, this.side, this.paddedHeight, this.paddedWidth);
  }

  // Calls visit(place in the image, place in the list of blocks, pixels) for each row of each block inside the image.
  walk(visit) {
    for (let row = 0; row < this.height; row++) {
      const first = Math.floor(row / this.side) * this.across * this.pixels + (row % this.side) * this.side;
      for (let block = 0; block < this.across; block++) {
        const column = block * this.side;
        visit(row * this.width + column, first + block * this.pixels, Math.min(this.side, this.width - column));
      }
    }
  }

  signals(image) {
    const signals = new Float32Array(this.count * this.pixels);
    this.walk((from, to, length) => signals.set(image.subarray(from, from + length), to));
    return signals;
  }

  image(signals) {
    const image = new Float32Array(this.height * this.width);
    this.walk((to, from, length) => image.set(signals.subarray(from, from + length), to));
    return image;
  }

  // Measurements (L, M) of an image.
  measure(image) {
    return multiply(this.signals(image), this.flipped, this.count, this.pixels, this.rows);
  }

  // The transposed matrix on measurements (L, M): an image.
  adjoint(y) {
    return this.estimate(this.matrix, y);
  }

  // The image whose blocks are measurements (L, M) times a matrix (M, B * B).
  async estimate(matrix, y) {
    return this.image(await multiply(y, matrix, this.count, this.rows, this.pixels));
  }
}

// The orthonormal 2-D DCT-II of images of one size.
class Cosine {
  constructor(height, width) {
    Object.assign(this, { height, width, rows: cosines(height), columns: cosines(width) });
    this.rowsFlipped = transposed(this.rows, height, height);
    this.columnsFlipped = transposed(this.columns, width, width);
  }

  analysis(image) {
    return this.product(this.rows, image, this.columnsFlipped);
  }

  synthesis(coefficients) {
    return this.product(this.rowsFlipped, coefficients, this.columns);
  }

  async product(left, image, right) {
    const { height, width } = this;
    return multiply(left, await multiply(image, right, height, width, width), height, height, width);
  }
}

// The matrix (n, n) of the DCT of n samples.
function cosines(n) {
  return Float32Array.from({ length: n * n }, (_, place) => {
    const [k, i] = [Math.floor(place / n), place % n];
    return Math.sqrt((k ? 2 : 1) / n) * Math.cos((Math.PI * k * (2 * i + 1)) / (2 * n));
  });
}

function transposed(image, height, width) {
  const result = new Float32Array(image.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) result[column * height + row] = image[row * width + column];
  }
  return result;
}

// target + factor * other, in place.
function add(target, factor, other) {
  for (let index = 0; index < target.length; index++) target[index] += factor * other[index];
}

function inner(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

// |a - b| / |reference|, of images or of lists of them.
function relative(a, b, reference) {
  if (Array.isArray(a)) return relative(joined(a), joined(b), joined(reference));
  let change = 0;
  let norm = 0;
  for (let index = 0; index < a.length; index++) {
    change += (a[index] - b[index]) ** 2;
    norm += reference[index] ** 2;
  }
  return Math.sqrt(change) / Math.max(Math.sqrt(norm), Number.MIN_VALUE);
}

function joined([first, second]) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

// Eigenvalues of the Laplacian in the 2-D DCT.
function laplacian(height, width) {
  const wave = (n, k) => 2 - 2 * Math.cos((Math.PI * k) / n);
  return Float32Array.from({ length: height * width }, (_, index) => {
    return wave(height, Math.floor(index / width)) + wave(width, index % width);
  });
}

// The smoothest image that explains the measurements, by a few preconditioned conjugate gradients.
async function smoothImage(y, blocks, cosine, { smooth_weight: weight, smooth_iterations: iterations }) {
  const spectrum = laplacian(blocks.height, blocks.width);
  const regular = spectrum.map((value) => value + 1e-3);
  regular[0] = regular.length > 1 ? regular.subarray(1).reduce((a, b) => Math.min(a, b)) : 1;
  const filtered = async (image, change) => cosine.synthesis((await cosine.analysis(image)).map(change));
  const smoothed = (image) => filtered(image, (value, index) => value / regular[index]);
  const x = new Float32Array(blocks.height * blocks.width);
  const residual = await blocks.adjoint(y);
  let smooth = await smoothed(residual);
  let direction = smooth.slice();
  let size = inner(residual, smooth);
  for (let iteration = 0; iteration < iterations; iteration++) {
    const curved = await blocks.adjoint(await blocks.measure(direction));
    add(curved, weight, await filtered(direction, (value, index) => value * spectrum[index]));
    const length = size / Math.max(inner(direction, curved), Number.MIN_VALUE);
    add(x, length, direction);
    add(residual, -length, curved);
    smooth = await smoothed(residual);
    const previous = size;
    size = inner(residual, smooth);
    const share = size / Math.max(previous, Number.MIN_VALUE);
    direction = direction.map((value, index) => smooth[index] + share * value);
  }
  return x;
}

// Differences to the next row and to the next column, 0 at the end.
function gradient(x, height, width) {
  const down = new Float32Array(x.length);
  const right = new Float32Array(x.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const index = row * width + column;
      if (row + 1 < height) down[index] = x[index + width] - x[index];
      if (column + 1 < width) right[index] = x[index + 1] - x[index];
    }
  }
  return [down, right];
}

function gradientAdjoint([down, right], height, width) {
  const x = new Float32Array(down.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const index = row * width + column;
      let sum = 0;
      if (row > 0) sum += down[index - width];
      if (row + 1 < height) sum -= down[index];
      if (column > 0) sum += right[index - 1];
      if (column + 1 < width) sum -= right[index];
      x[index] = sum;
    }
  }
  return x;
}

// Isotropic total variation by ADMM, cs_models/solvers/tv.py step for step; `told` hears the share that is done.
async function totalVariation(y, blocks, settings, told) {
  const { weight, jump, over_relaxation: relaxation, iterations, tolerance } = settings;
  const { height, width } = blocks;
  const rho = weight / jump;
  const coupling = settings.coupling * rho;
  const spectrum = laplacian(height, width).map((value) => rho * value + coupling);
  const cosine = new Cosine(height, width);
  const whole = blocks.padded();
  const pad = (image) => whole.image(blocks.signals(image));
  const crop = (image) => blocks.image(whole.signals(image));
  let x = await smoothImage(y, blocks, cosine, settings);
  let z = gradient(x, height, width);
  let u = z.map((part) => new Float32Array(part.length));
  let w = pad(x);
  let q = new Float32Array(w.length);
  for (let iteration = 1; iteration <= iterations; iteration++) {
    told(iteration / iterations);
    const split = z.map((part, axis) => part.map((value, index) => rho * (value - u[axis][index])));
    const right = gradientAdjoint(split, height, width);
    add(right, coupling, crop(w.map((value, index) => value - q[index])));
    const coefficients = await cosine.analysis(right);
    x = await cosine.synthesis(coefficients.map((value, index) => value / spectrum[index]));

    const slope = gradient(x, height, width);
    const relaxed = slope.map((part, axis) =>
      part.map((value, index) => z[axis][index] + relaxation * (value - z[axis][index]) + u[axis][index]),
    );
    const kept = relaxed[0].map((value, index) => {
      const other = relaxed[1][index];
      return 1 - jump / Math.max(Math.sqrt(value * value + other * other), jump);
    });
    const moved = relaxed.map((part) => part.map((value, index) => value * kept[index]));
    let change = Math.max(relative(slope, moved, slope), relative(moved, z, slope));
    z = moved;
    u = relaxed.map((part, axis) => part.map((value, index) => value - moved[axis][index]));

    const padded = pad(x);
    const aim = w.map((value, index) => value + relaxation * (padded[index] - value) + q[index]);
    const measured = await whole.measure(aim);
    const next = await whole.adjoint(y.map((value, index) => (value - measured[index]) / (1 + coupling)));
    add(next, 1, aim);
    change = Math.max(change, relative(padded, next, next), relative(next, w, next));
    w = next;
    q = aim.map((value, index) => value - next[index]);
    if (change <= tolerance) break;
  }
  return x;
}

// PSNR in dB of an estimate, which is clipped to [0, 1] in its place.
function score(estimate, image) {
  let error = 0;
  for (let index = 0; index < image.length; index++) {
    estimate[index] = Math.min(1, Math.max(0, estimate[index]));
    error += (estimate[index] - image[index]) ** 2;
  }
  return -10 * Math.log10(error / image.length);
}
