"use strict";
// Block sampling and what needs no network: the linear estimate and total variation, as the package computes them.
// Images and matrices are Float64Array, row by row; blocks go row by row over the image, which is padded with zeros at
// the bottom and at the right. A matrix (M, B * B) has orthonormal rows.

class Blocks {
  constructor(matrix, rows, side, height, width) {
    Object.assign(this, { matrix, rows, side, height, width });
    this.pixels = side * side;
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

  // Calls visit(pixel of the image, pixel of the list of blocks) for every pixel inside the image.
  walk(visit) {
    for (let row = 0; row < this.height; row++) {
      const blockRow = Math.floor(row / this.side) * this.across;
      const inside = (row % this.side) * this.side;
      for (let column = 0; column < this.width; column++) {
        const block = blockRow + Math.floor(column / this.side);
        visit(row * this.width + column, block * this.pixels + inside + (column % this.side));
      }
    }
  }

  signals(image) {
    const signals = new Float64Array(this.count * this.pixels);
    this.walk((pixel, place) => (signals[place] = image[pixel]));
    return signals;
  }

  image(signals) {
    const image = new Float64Array(this.height * this.width);
    this.walk((pixel, place) => (image[pixel] = signals[place]));
    return image;
  }

  // Measurements (L, M) of an image.
  measure(image) {
    const signals = this.signals(image);
    const y = new Float64Array(this.count * this.rows);
    for (let block = 0; block < this.count; block++) {
      const signal = signals.subarray(block * this.pixels, (block + 1) * this.pixels);
      for (let row = 0; row < this.rows; row++) y[block * this.rows + row] = dot(this.matrix, row * this.pixels, signal);
    }
    return y;
  }

  // The transposed matrix on measurements (L, M): an image.
  adjoint(y) {
    const signals = new Float64Array(this.count * this.pixels);
    for (let block = 0; block < this.count; block++) {
      const signal = signals.subarray(block * this.pixels, (block + 1) * this.pixels);
      for (let row = 0; row < this.rows; row++) add(signal, y[block * this.rows + row], this.matrix, row * this.pixels);
    }
    return this.image(signals);
  }

  // An estimator (B * B, M) on measurements: an image.
  linear(estimator, y) {
    const signals = new Float64Array(this.count * this.pixels);
    for (let block = 0; block < this.count; block++) {
      const own = y.subarray(block * this.rows, (block + 1) * this.rows);
      for (let pixel = 0; pixel < this.pixels; pixel++) {
        signals[block * this.pixels + pixel] = dot(estimator, pixel * this.rows, own);
      }
    }
    return this.image(signals);
  }
}

// Four sums at a time keep the processor from waiting for each one.
function dot(matrix, start, vector) {
  const { length } = vector;
  const whole = length - (length % 4);
  let [a, b, c, d] = [0, 0, 0, 0];
  let index = 0;
  for (; index < whole; index += 4) {
    a += matrix[start + index] * vector[index];
    b += matrix[start + index + 1] * vector[index + 1];
    c += matrix[start + index + 2] * vector[index + 2];
    d += matrix[start + index + 3] * vector[index + 3];
  }
  for (; index < length; index++) a += matrix[start + index] * vector[index];
  return a + b + c + d;
}

function add(target, factor, matrix, start) {
  const { length } = target;
  for (let index = 0; index < length; index++) target[index] += factor * matrix[start + index];
}

function inner(a, b) {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index] * b[index];
  return sum;
}

// |a - b| / |reference|
function relative(a, b, reference) {
  let change = 0;
  let norm = 0;
  for (let index = 0; index < a.length; index++) {
    change += (a[index] - b[index]) ** 2;
    norm += reference[index] ** 2;
  }
  return Math.sqrt(change) / Math.max(Math.sqrt(norm), Number.MIN_VALUE);
}

// The orthonormal 2-D DCT-II of images of one size. A row of it is even or odd about the middle of the signal, so that
// half of the products are saved by adding or subtracting the halves of the signal first.
class Cosine {
  constructor(height, width) {
    Object.assign(this, { height, width });
    this.rows = cosines(height);
    this.columns = height === width ? this.rows : cosines(width);
  }

  analysis(image) {
    return this.twice(image, forwards);
  }

  synthesis(coefficients) {
    return this.twice(coefficients, backwards);
  }

  // Along the rows, then along the columns, by way of transposed images.
  twice(image, transform) {
    const once = transposed(transform(image, this.columns, this.width), this.height, this.width);
    return transposed(transform(once, this.rows, this.height), this.width, this.height);
  }
}

// The matrix of the DCT of n samples, of which the first half of the columns: (n, ceil(n / 2)).
function cosines(n) {
  const half = Math.ceil(n / 2);
  const table = new Float64Array(n * half);
  for (let k = 0; k < n; k++) {
    const scale = Math.sqrt((k ? 2 : 1) / n);
    for (let i = 0; i < half; i++) table[k * half + i] = scale * Math.cos((Math.PI * k * (2 * i + 1)) / (2 * n));
  }
  return table;
}

function forwards(image, table, n) {
  const half = Math.ceil(n / 2);
  const result = new Float64Array(image.length);
  const folded = [new Float64Array(half), new Float64Array(half)];
  for (let start = 0; start < image.length; start += n) {
    for (let i = 0; i < half; i++) {
      const mirror = n - 1 - i;
      const other = mirror === i ? 0 : image[start + mirror];
      folded[0][i] = image[start + i] + other;
      folded[1][i] = image[start + i] - other;
    }
    for (let k = 0; k < n; k++) result[start + k] = dot(table, k * half, folded[k % 2]);
  }
  return result;
}

function backwards(image, table, n) {
  const half = Math.ceil(n / 2);
  const result = new Float64Array(image.length);
  const parts = [new Float64Array(half), new Float64Array(half)];
  for (let start = 0; start < image.length; start += n) {
    parts[0].fill(0);
    parts[1].fill(0);
    for (let k = 0; k < n; k++) add(parts[k % 2], image[start + k], table, k * half);
    for (let i = 0; i < half; i++) {
      result[start + i] = parts[0][i] + parts[1][i];
      result[start + n - 1 - i] = parts[0][i] + (n - 1 - i === i ? parts[1][i] : -parts[1][i]);
    }
  }
  return result;
}

function transposed(image, height, width) {
  const result = new Float64Array(image.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) result[column * height + row] = image[row * width + column];
  }
  return result;
}

// Eigenvalues of the Laplacian in the 2-D DCT.
function laplacian(height, width) {
  const wave = (n, k) => 2 - 2 * Math.cos((Math.PI * k) / n);
  return Float64Array.from({ length: height * width }, (_, index) => {
    return wave(height, Math.floor(index / width)) + wave(width, index % width);
  });
}

// The smoothest image that explains the measurements, by a few preconditioned conjugate gradients.
function smoothImage(y, blocks, cosine, { smooth_weight: weight, smooth_iterations: iterations }) {
  const spectrum = laplacian(blocks.height, blocks.width);
  const regular = spectrum.map((value) => value + 1e-3);
  regular[0] = regular.length > 1 ? regular.subarray(1).reduce((a, b) => Math.min(a, b)) : 1;
  const filtered = (image, change) => cosine.synthesis(cosine.analysis(image).map(change));
  const smoothed = (image) => filtered(image, (value, index) => value / regular[index]);
  const x = new Float64Array(blocks.height * blocks.width);
  const residual = blocks.adjoint(y);
  let smooth = smoothed(residual);
  let direction = smooth.slice();
  let size = inner(residual, smooth);
  for (let iteration = 0; iteration < iterations; iteration++) {
    const curved = blocks.adjoint(blocks.measure(direction));
    add(curved, weight, filtered(direction, (value, index) => value * spectrum[index]), 0);
    const length = size / Math.max(inner(direction, curved), Number.MIN_VALUE);
    add(x, length, direction, 0);
    add(residual, -length, curved, 0);
    smooth = smoothed(residual);
    const previous = size;
    size = inner(residual, smooth);
    const share = size / Math.max(previous, Number.MIN_VALUE);
    direction = direction.map((value, index) => smooth[index] + share * value);
  }
  return x;
}

// Differences to the next row and to the next column, 0 at the end.
function gradient(x, height, width) {
  const down = new Float64Array(x.length);
  const right = new Float64Array(x.length);
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
  const x = new Float64Array(down.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const index = row * width + column;
      if (row > 0) x[index] += down[index - width];
      if (row + 1 < height) x[index] -= down[index];
      if (column > 0) x[index] += right[index - 1];
      if (column + 1 < width) x[index] -= right[index];
    }
  }
  return x;
}

// Isotropic total variation by ADMM, cs_models/solvers/tv.py step for step; `told` hears the share that is done.
function totalVariation(y, blocks, settings, told) {
  const { weight, jump, over_relaxation: relaxation, iterations, tolerance } = settings;
  const { height, width } = blocks;
  const rho = weight / jump;
  const coupling = settings.coupling * rho;
  const spectrum = laplacian(height, width).map((value) => rho * value + coupling);
  const cosine = new Cosine(height, width);
  const whole = blocks.padded();
  const pad = (image) => whole.image(blocks.signals(image));
  const crop = (image) => blocks.image(whole.signals(image));
  let x = smoothImage(y, blocks, cosine, settings);
  let z = gradient(x, height, width);
  let u = z.map((part) => new Float64Array(part.length));
  let w = pad(x);
  let q = new Float64Array(w.length);
  for (let iteration = 1; iteration <= iterations; iteration++) {
    told(iteration / iterations);
    const right = gradientAdjoint(
      z.map((part, axis) => part.map((value, index) => value - u[axis][index])),
      height,
      width,
    ).map((value) => rho * value);
    add(right, coupling, crop(w.map((value, index) => value - q[index])), 0);
    x = cosine.synthesis(cosine.analysis(right).map((value, index) => value / spectrum[index]));

    const slope = gradient(x, height, width);
    const relaxed = slope.map((part, axis) =>
      part.map((value, index) => z[axis][index] + relaxation * (value - z[axis][index]) + u[axis][index]),
    );
    const kept = relaxed[0].map((value, index) => 1 - jump / Math.max(Math.hypot(value, relaxed[1][index]), jump));
    const moved = relaxed.map((part) => part.map((value, index) => value * kept[index]));
    const slopes = joined(slope);
    let change = Math.max(relative(slopes, joined(moved), slopes), relative(joined(moved), joined(z), slopes));
    z = moved;
    u = relaxed.map((part, axis) => part.map((value, index) => value - moved[axis][index]));

    const padded = pad(x);
    const aim = w.map((value, index) => value + relaxation * (padded[index] - value) + q[index]);
    const measured = whole.measure(aim);
    const next = whole.adjoint(y.map((value, index) => (value - measured[index]) / (1 + coupling)));
    add(next, 1, aim, 0);
    change = Math.max(change, relative(padded, next, next), relative(next, w, next));
    w = next;
    q = aim.map((value, index) => value - next[index]);
    if (change <= tolerance) break;
  }
  return x;
}

function joined([first, second]) {
  const both = new Float64Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}

// PSNR in dB of an estimate in place, clipped to [0, 1] first.
function score(estimate, image) {
  let error = 0;
  for (let index = 0; index < image.length; index++) {
    estimate[index] = Math.min(1, Math.max(0, estimate[index]));
    error += (estimate[index] - image[index]) ** 2;
  }
  return -10 * Math.log10(error / image.length);
}
