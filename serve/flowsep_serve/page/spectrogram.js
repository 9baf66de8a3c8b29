// Spectrograms on a canvas: mel frequency over time, in dB below the loudest point of the scale.

const SIZE = 1024;
const BANDS = 96;
const COLUMNS = 800;
const RANGE = 70;
// A few points of the colour map magma.
const COLOURS = [[0, 0, 4], [40, 17, 89], [114, 31, 129], [183, 55, 121], [241, 96, 93], [254, 176, 120], [252, 253, 191]];

function makeTransform(size) {
  const cosines = new Float32Array(size / 2);
  const sines = new Float32Array(size / 2);
  for (let i = 0; i < size / 2; i++) {
    cosines[i] = Math.cos((2 * Math.PI * i) / size);
    sines[i] = Math.sin((2 * Math.PI * i) / size);
  }
  return (real, imaginary) => {
    for (let i = 1, j = 0; i < size; i++) {
      let bit = size >> 1;
      for (; j & bit; bit >>= 1) j ^= bit;
      j ^= bit;
      if (i < j) [real[i], real[j]] = [real[j], real[i]];
    }
    for (let half = 1; half < size; half *= 2) {
      const stride = size / (2 * half);
      for (let start = 0; start < size; start += 2 * half) {
        for (let k = 0; k < half; k++) {
          const [a, b] = [start + k, start + k + half];
          const [c, s] = [cosines[k * stride], sines[k * stride]];
          const re = real[b] * c + imaginary[b] * s;
          const im = imaginary[b] * c - real[b] * s;
          real[b] = real[a] - re;
          imaginary[b] = imaginary[a] - im;
          real[a] += re;
          imaginary[a] += im;
        }
      }
    }
  };
}

const mel = (hertz) => 2595 * Math.log10(1 + hertz / 700);
const hertz = (value) => 700 * (10 ** (value / 2595) - 1);

// The first channel's decibels [columns][bands], lowest band first.
export function decibels(buffer) {
  const samples = buffer.getChannelData(0);
  const transform = makeTransform(SIZE);
  const real = new Float32Array(SIZE);
  const imaginary = new Float32Array(SIZE);
  const window = Float32Array.from(real, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
  const top = mel(Math.min(buffer.sampleRate / 2, 16000));
  const edges = Array.from({ length: BANDS + 1 }, (_, i) =>
    Math.min(SIZE / 2, Math.round((hertz((top * i) / BANDS) / buffer.sampleRate) * SIZE)));
  const columns = Math.max(1, Math.min(COLUMNS, Math.ceil(samples.length / (SIZE / 4))));
  const picture = [];
  for (let column = 0; column < columns; column++) {
    const start = Math.round(((column + 0.5) * samples.length) / columns) - SIZE / 2;
    for (let i = 0; i < SIZE; i++) {
      real[i] = (samples[start + i] ?? 0) * window[i];
      imaginary[i] = 0;
    }
    transform(real, imaginary);
    const bands = new Float32Array(BANDS);
    for (let band = 0; band < BANDS; band++) {
      let most = 1e-20;
      for (let bin = edges[band]; bin < Math.max(edges[band] + 1, edges[band + 1]); bin++) {
        most = Math.max(most, real[bin] ** 2 + imaginary[bin] ** 2);
      }
      bands[band] = 10 * Math.log10(most / (SIZE / 4) ** 2);
    }
    picture.push(bands);
  }
  return picture;
}

export function loudest(picture) {
  return picture.reduce((most, bands) => bands.reduce((a, b) => Math.max(a, b), most), -120);
}

// Draws a picture; pictures of one loudest point can be compared.
export function draw(canvas, picture, top = loudest(picture)) {
  canvas.width = picture.length;
  canvas.height = BANDS;
  const context = canvas.getContext("2d");
  const image = context.createImageData(picture.length, BANDS);
  picture.forEach((bands, x) => {
    bands.forEach((level, band) => {
      const place = Math.min(1, Math.max(0, 1 + (level - top) / RANGE)) * (COLOURS.length - 1);
      const low = Math.min(COLOURS.length - 2, Math.floor(place));
      const at = 4 * ((BANDS - 1 - band) * picture.length + x);
      for (let i = 0; i < 3; i++) {
        image.data[at + i] = COLOURS[low][i] + (place - low) * (COLOURS[low + 1][i] - COLOURS[low][i]);
      }
      image.data[at + 3] = 255;
    });
  });
  context.putImageData(image, 0, 0);
}
