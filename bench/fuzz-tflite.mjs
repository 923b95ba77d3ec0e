// Mutates real TFLite files and reads, prints and writes what comes of it: every outcome must be a coded error or a model.
//
//     npm run -s build && node bench/fuzz-tflite.mjs [--mutations 100000] [--seed 1] [--write]
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NpucError } from '../dist/compiler/errors.js';
import { SourceBytes } from '../dist/targets/tflite/byte-source.js';
import { printTflite } from '../dist/targets/tflite/print.js';
import { readTflite } from '../dist/targets/tflite/read.js';
import { encodeTflite } from '../dist/targets/tflite/write.js';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const FOLDERS = ['tflite/ai-edge-quantizer', 'npu-artifacts/litert'];
const RESULT = join(root, 'bench', 'results', 'fuzz-tflite.md');

/** Larger files have the same tables and more weights. */
const LARGEST = 256 << 10;

const flag = (name, fallback) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? fallback : Number(process.argv[at + 1]);
};

function randomSource(seed) {
  let state = seed >>> 0;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * limit);
  };
}

/** Words that point nowhere, everywhere, back, or at the ends of types. */
const WORDS = [0, 1, 3, 4, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xfffffffc, 0xffffffff];

/** One to four changes of a file: a bit, a byte, a word, a copied range, a cut. */
function mutate(good, random) {
  let bytes = new Uint8Array(good);
  for (let changes = 1 + random(4); changes > 0; changes--) {
    const at = random(bytes.length);
    // Tables lie at the front of most files: half of the changes go there.
    const place = random(2) === 0 ? at : random(Math.min(bytes.length, 4096));
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const aligned = Math.min(place & ~3, bytes.length - 4);
    switch (random(6)) {
      case 0:
        bytes[place] ^= 1 << random(8);
        break;
      case 1:
        bytes[place] = random(256);
        break;
      case 2:
        view.setUint32(aligned, WORDS[random(WORDS.length)], true);
        break;
      case 3:
        view.setUint32(aligned, random(2 * bytes.length), true);
        break;
      case 4: {
        const length = random(Math.min(64, bytes.length - place));
        bytes.copyWithin(random(bytes.length - length), place, place + length);
        break;
      }
      default:
        if (bytes.length > 64) bytes = bytes.slice(0, bytes.length - random(bytes.length >> 1));
    }
    if (bytes.length < 8) return bytes;
  }
  return bytes;
}

/** `read`, `read and written`, or the code of the error. Everything else is a finding and thrown. */
function outcome(bytes) {
  let model;
  try {
    model = readTflite(bytes, 'mutated.tflite');
    for (const buffer of model.buffers)
      if (buffer instanceof SourceBytes) buffer.read(0, Math.min(16, buffer.byteLength));
  } catch (error) {
    if (!(error instanceof NpucError) || error.exitCode !== 2) throw error;
    return error.code;
  }
  if (typeof printTflite(model) !== 'string') throw new Error('the text is no text');
  try {
    encodeTflite(model, { foreign: true });
    return 'read and written';
  } catch (error) {
    if (!(error instanceof NpucError) || !/^TF10[34]$/.test(error.code)) throw error;
    return `read, ${error.code} when written`;
  }
}

const mutations = flag('mutations', 100_000);
const seed = flag('seed', 1);
const random = randomSource(seed);
const material = join(root, '..', 'shared', 'material');
const files = FOLDERS.flatMap((folder) =>
  readdirSync(join(material, folder))
    .sort()
    .map((name) => join(material, folder, name)),
)
  .map((path) => ({ path, bytes: new Uint8Array(readFileSync(path)) }))
  .filter(({ bytes }) => bytes.length <= LARGEST);

const counts = new Map();
let slowest = 0;
const started = performance.now();
for (let run = 0; run < mutations; run++) {
  const { path, bytes } = files[random(files.length)];
  const mutated = mutate(bytes, random);
  const before = performance.now();
  try {
    const result = outcome(mutated);
    counts.set(result, (counts.get(result) ?? 0) + 1);
  } catch (error) {
    const kept = join(root, '.tmp', `fuzz-${seed}-${run}.tflite`);
    writeFileSync(kept, mutated);
    console.error(`mutation ${run} of ${path} is kept as ${kept}`);
    throw error;
  }
  slowest = Math.max(slowest, performance.now() - before);
}
const seconds = (performance.now() - started) / 1000;
const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([result, count]) => `| ${result} | ${count} |`);
const text = `# Mutated TFLite files

${mutations} mutations of ${files.length} real files (seed ${seed}), each read, printed and written again:

    npm run -s build && node bench/fuzz-tflite.mjs --mutations ${mutations} --seed ${seed} --write

| outcome | mutations |
|---|---|
${rows.join('\n')}

No crash, no hang, no error without a code. ${seconds.toFixed(0)} s on one of ${cpus().length} cores, the slowest ${slowest.toFixed(0)} ms, at most
${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB of memory for the whole process.
`;
console.log(text);
if (process.argv.includes('--write')) writeFileSync(RESULT, text);
