// Every ONNX model of the material, every scheme: dB of the outputs against the untouched float model, on ONNX Runtime and
// on the HTP simulator, and whether HTP takes the whole graph.
// npm run -s build && node bench/onnx-models.mjs [--write] [--text] [model..] [--scheme w8a8,w8a16,fp16] [--range min-max]
// --write puts the table into docs/onnx-models.md.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { crc32 } from 'node:zlib';
import { compileOptions } from '../dist/cli/compile.js';
import { mergeConfig } from '../dist/cli/config.js';
import { compileOnnx } from '../dist/cli/jobs/compile-onnx.js';
import { readNpz } from '../dist/compiler/import/npz.js';
import { openTensorFile } from '../dist/compiler/import/onnx.js';
import { findToolchain } from '../dist/targets/qnn/toolchain.js';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const material = join(root, '..', 'shared', 'material', 'onnx');
const work = mkdtempSync(join(tmpdir(), 'npuc-bench-'));
process.once('exit', () => rmSync(work, { recursive: true, force: true }));

const tensorFile = (...parts) => openTensorFile(join(material, ...parts)).toData();

/** An image of shape [1, channels, height, width], read at (y, x) through a map of coordinates. */
function remap(image, height, width, place) {
  const [, channels, fromHeight, fromWidth] = image.shape;
  const data = new Float32Array(channels * height * width);
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const [fromY, fromX] = place(y, x);
        data[(c * height + y) * width + x] = image.data[(c * fromHeight + fromY) * fromWidth + fromX];
      }
  return { dtype: 'f32', shape: [1, channels, height, width], data };
}

const flips = (image) => {
  const [, , h, w] = image.shape;
  return [
    remap(image, h, w, (y, x) => [y, w - 1 - x]),
    remap(image, h, w, (y, x) => [h - 1 - y, x]),
    remap(image, h, w, (y, x) => [h - 1 - y, w - 1 - x]),
  ];
};

/** Crops of a grey photograph, as colour images in the range that a detector takes; each with a tint of its own. */
function crops(height, width, places, scale, shift) {
  const photo = tensorFile('super_resolution_10', 'test_data_set_0', 'output_0.pb');
  return places.map(([top, left, step]) => {
    const grey = remap(photo, height, width, (y, x) => [Math.min(671, top + y * step), Math.min(671, left + x * step)]);
    const data = new Float32Array(3 * height * width);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < grey.data.length; i++)
        data[c * grey.data.length + i] = Math.min(1, Math.max(0, grey.data[i] * (1 - 0.08 * c))) * scale + shift;
    return { dtype: 'f32', shape: [1, 3, height, width], data };
  });
}

const TRAINING_PLACES = [
  [0, 0, 1],
  [340, 0, 1],
  [0, 340, 1],
  [0, 0, 2],
  [60, 200, 1],
  [300, 120, 1],
];
const HELD_OUT_PLACES = [
  [170, 170, 1],
  [330, 330, 1],
];

const MODELS = {
  mnist_8: {
    path: 'mnist_8/model.onnx',
    input: 'Input3',
    calibrate: () => [0, 1, 2].map((set) => tensorFile('mnist_8', `test_data_set_${set}`, 'input_0.pb')),
    evaluate: () => [tensorFile('mnist_8', 'test_data_set_0', 'input_0.pb')],
  },
  super_resolution_10: {
    path: 'super_resolution_10/model.onnx',
    bind: ['batch_size=1'],
    input: 'input',
    calibrate: () => flips(tensorFile('super_resolution_10', 'test_data_set_0', 'input_0.pb')),
    evaluate: () => [tensorFile('super_resolution_10', 'test_data_set_0', 'input_0.pb')],
  },
  ultraface: {
    path: 'ultraface/version-RFB-320.onnx',
    input: 'input',
    calibrate: () => crops(240, 320, TRAINING_PLACES, 255 / 128, -127 / 128),
    evaluate: () => crops(240, 320, HELD_OUT_PLACES, 255 / 128, -127 / 128),
  },
  yunet: {
    path: 'yunet/yunet_n_320_320.onnx',
    input: 'input',
    calibrate: () => crops(320, 320, TRAINING_PLACES, 255, 0),
    evaluate: () => crops(320, 320, HELD_OUT_PLACES, 255, 0),
  },
  'ppocr-det': {
    path: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx',
    bind: ['x=1x3x320x320'],
    input: 'x',
    calibrate: () => flips(readNpz(join(material, 'ppocr-v4', 'det.two-lines.npz')).in_x),
    evaluate: () => [readNpz(join(material, 'ppocr-v4', 'det.two-lines.npz')).in_x],
  },
  'ppocr-cls': {
    path: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx',
    bind: ['x=1x3x48x192'],
    input: 'x',
    calibrate: () => flips(readNpz(join(material, 'ppocr-v4', 'cls.ocr-line.npz')).in_x),
    evaluate: () => [readNpz(join(material, 'ppocr-v4', 'cls.ocr-line.npz')).in_x],
  },
};

/** One stored .npy entry in a zip: NumPy's np.savez. */
function writeNpz(path, name, samples) {
  const [, ...rest] = samples[0].shape;
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${[samples.length, ...rest].join(', ')}), }`;
  const head = Buffer.from(`\x93NUMPY\x01\x00\x00\x00${header}\n`, 'latin1');
  head.writeUInt16LE(header.length + 1, 8);
  const bytes = Buffer.concat([
    head,
    ...samples.map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
  ]);
  const entry = Buffer.from(`${name}.npy`);
  const common = Buffer.alloc(26);
  common.writeUInt16LE(20, 0);
  common.writeUInt32LE(crc32(bytes), 10);
  common.writeUInt32LE(bytes.length, 14);
  common.writeUInt32LE(bytes.length, 18);
  common.writeUInt16LE(entry.length, 22);
  const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, entry, bytes]);
  const central = Buffer.concat([Buffer.from('PK\x01\x02\x14\x00'), common, Buffer.alloc(14), entry]);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(1, 8);
  end.writeUInt16LE(1, 10);
  end.writeUInt32LE(central.length, 12);
  end.writeUInt32LE(local.length, 16);
  writeFileSync(path, Buffer.concat([local, central, end]));
}

async function measure(name, scheme, extra) {
  const model = MODELS[name];
  const folder = join(work, `${name}-${scheme}`);
  mkdirSync(folder, { recursive: true });
  for (const kind of ['calibrate', 'evaluate']) writeNpz(join(folder, `${kind}.npz`), model.input, model[kind]());
  const config = mergeConfig(
    {},
    {
      source: join(material, model.path),
      scheme,
      out: join(folder, 'out'),
      bind: model.bind ?? [],
      calibrate: join(folder, 'calibrate.npz'),
      evaluate: join(folder, 'evaluate.npz'),
      ...extra,
    },
  );
  const started = performance.now();
  const { report } = await compileOnnx(compileOptions(config, { force: true, quiet: true }), config.bind);
  return { report, seconds: (performance.now() - started) / 1000 };
}

const decibels = (outputs) => {
  const all = outputs.map(({ sqnr }) => sqnr);
  const show = (value) => (value === Infinity ? 'exact' : value.toFixed(1));
  const [low, high] = [Math.min(...all), Math.max(...all)];
  return low === high ? show(low) : `${show(low)} to ${show(high)}`;
};

const words = process.argv.slice(2);
const flag = words.indexOf('--scheme');
const schemes = flag < 0 ? ['w8a8', 'w8a16', 'fp16'] : words.splice(flag, 2)[1].split(',');
const range = words.indexOf('--range');
const extra = range < 0 ? {} : { range: words.splice(range, 2)[1] };
const write = words.includes('--write');
const show = words.includes('--text');
const names = words.filter((word) => !word.startsWith('--'));
if (!findToolchain('qnn')) process.stderr.write('the QNN toolchain is absent: no HTP column\n');
const rows = [
  '| model | scheme | ORT dB | HTP dB | HTP against its QDQ twin dB | whole graph on HTP | seconds |',
  '|---|---|---|---|---|---|---|',
];
for (const name of names.length > 0 ? names : Object.keys(MODELS)) {
  for (const scheme of schemes) {
    const { report, seconds } = await measure(name, scheme, extra);
    const { onnx, qnn } = report.targets;
    const why = report.remarks.find((remark) => remark.startsWith('qnn is left out'));
    const htp = qnn ? [decibels(qnn.outputs), decibels(qnn.twin), 'yes'] : ['-', '-', `no: ${why}`];
    rows.push(`| ${name} | ${scheme} | ${decibels(onnx.outputs)} | ${htp.join(' | ')} | ${seconds.toFixed(1)} |`);
    process.stdout.write(`${rows.at(-1)}\n`);
    if (show) {
      for (const [target, { outputs, values, notes }] of Object.entries(report.targets)) {
        process.stdout.write(`${target} ${JSON.stringify(outputs)} ${notes}\n`);
        for (const value of values)
          process.stdout.write(`  ${value.sqnr.toFixed(1)} ${value.name} ${value.from.slice(0, 3)}\n`);
      }
      process.stdout.write(`${report.remarks.join('\n')}\n`);
    }
  }
}
if (write) {
  const path = join(root, 'docs', 'onnx-models.md');
  const text = readFileSync(path, 'utf8');
  writeFileSync(path, text.replace(/(<!-- table -->\n)[\s\S]*?(<!-- end -->)/, `$1${rows.join('\n')}\n$2`));
}
