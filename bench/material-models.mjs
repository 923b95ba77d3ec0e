// The real vision and audio models of the material, and what they are fed: samples for calibration, and others to evaluate on.
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { crc32 } from 'node:zlib';
import { openModel } from '../dist/cli/jobs/open-model.js';
import { readNpz } from '../dist/compiler/import/npz.js';
import { openTensorFile } from '../dist/compiler/import/onnx.js';
import { openModule } from '../dist/compiler/runtime/engine.js';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const shared = join(root, '..', 'shared', 'material');
export const material = join(shared, 'onnx');

const tensorFile = (...parts) => openTensorFile(join(material, ...parts)).toData();
const f32 = (shape, data) => ({ dtype: 'f32', shape, data: Float32Array.from(data) });

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

/** An image moved by some pixels, its edge repeated. */
function shift(image, down, right) {
  const [, , h, w] = image.shape;
  const within = (at, size) => Math.min(size - 1, Math.max(0, at));
  return remap(image, h, w, (y, x) => [within(y - down, h), within(x - right, w)]);
}

/** Crops of a grey photograph, as colour images in the range that a detector takes; each with a tint of its own. */
function crops(height, width, places, scale, offset) {
  const photo = tensorFile('super_resolution_10', 'test_data_set_0', 'output_0.pb');
  return places.map(([top, left, step]) => {
    const grey = remap(photo, height, width, (y, x) => [Math.min(671, top + y * step), Math.min(671, left + x * step)]);
    const data = new Float32Array(3 * height * width);
    for (let c = 0; c < 3; c++)
      for (let i = 0; i < grey.data.length; i++)
        data[c * grey.data.length + i] = Math.min(1, Math.max(0, grey.data[i] * (1 - 0.08 * c))) * scale + offset;
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

/** The speech of the material, as floats at 16 kHz. */
function speech() {
  const file = readFileSync(join(shared, 'audio', 'jfk.wav'));
  const at = file.indexOf('data', 12, 'latin1') + 8;
  const count = Math.floor((file.length - at) / 2);
  return Float32Array.from({ length: count }, (_, i) => file.readInt16LE(at + 2 * i) / 32768);
}

const MUSIC_RATE = 22050;
const MUSIC_WINDOW = 43844;

/** Seconds of speech at the rate that basic-pitch takes, linearly interpolated. */
function speechWindow(second) {
  const samples = speech();
  return f32(
    [1, MUSIC_WINDOW, 1],
    Float32Array.from({ length: MUSIC_WINDOW }, (_, i) => {
      const at = (second + i / MUSIC_RATE) * 16000;
      const left = Math.min(samples.length - 2, Math.floor(at));
      return samples[left] + (at - left) * (samples[left + 1] - samples[left]);
    }),
  );
}

/** Plucked chords: decaying tones with two overtones, a new chord every half second. */
function chords(pitches) {
  return f32(
    [1, MUSIC_WINDOW, 1],
    Float32Array.from({ length: MUSIC_WINDOW }, (_, i) => {
      const time = i / MUSIC_RATE;
      const since = time % 0.5;
      const step = 2 ** (Math.floor(time / 0.5) / 6);
      return pitches.reduce((sum, pitch) => {
        const phase = 2 * Math.PI * pitch * step * time;
        const tone = Math.sin(phase) + 0.4 * Math.sin(2 * phase) + 0.2 * Math.sin(3 * phase);
        return sum + (0.3 / pitches.length) * Math.exp(-4 * since) * tone;
      }, 0);
    }),
  );
}

const SPEECH_FRAME = 512;
const SPEECH_CONTEXT = 64;

/** Frames of speech as silero-vad is run over them, with the states that the float model has come to. */
async function speechFrames(pick) {
  const samples = speech();
  const { path, bind } = MODELS['silero-vad'];
  const runner = await openModule(openModel(join(material, path), bind).module);
  const frames = [];
  try {
    let state = f32([2, 1, 128], new Float32Array(256));
    for (let frame = 0; (frame + 1) * SPEECH_FRAME <= samples.length; frame++) {
      const start = frame * SPEECH_FRAME;
      const input = new Float32Array(SPEECH_CONTEXT + SPEECH_FRAME);
      input.set(samples.subarray(start, start + SPEECH_FRAME), SPEECH_CONTEXT);
      if (frame > 0) input.set(samples.subarray(start - SPEECH_CONTEXT, start));
      const feed = {
        input: f32([1, input.length], input),
        state,
        sr: { dtype: 'i64', shape: [], data: BigInt64Array.of(16000n) },
      };
      if (pick(frame)) frames.push(feed);
      state = (await runner.run(feed)).stateN;
    }
  } finally {
    await runner.close();
  }
  return frames;
}

const named = (name, tensors) => tensors.map((tensor) => ({ [name]: tensor }));

/** The largest element's place in every row of the last axis, for all samples. */
function argmaxes(results, name) {
  return results.flatMap(({ [name]: { data, shape } }) => {
    const size = shape.at(-1);
    return Array.from({ length: data.length / size }, (_, row) => {
      const values = data.slice(row * size, (row + 1) * size);
      return values.indexOf(values.reduce((a, b) => (b > a ? b : a)));
    });
  });
}

/** Share of rows whose largest element is the same. */
const sameTop = (name) => (expected, got) => {
  const [a, b] = [argmaxes(expected, name), argmaxes(got, name)];
  return `same class ${a.filter((each, i) => each === b[i]).length}/${a.length}`;
};

/** Over some outputs and all samples: how much the sets of what is above a threshold overlap. */
const overlap = (names, threshold, label) => (expected, got) => {
  let [both, either] = [0, 0];
  for (const name of names)
    expected.forEach(({ [name]: { data } }, sample) => {
      const other = got[sample][name].data;
      data.forEach((value, i) => {
        const [a, b] = [value > threshold, other[i] > threshold];
        if (a && b) both++;
        if (a || b) either++;
      });
    });
  return `${label} IoU ${either === 0 ? 'none' : (both / either).toFixed(3)}`;
};

/** The largest difference of some outputs, times a factor. */
const largest =
  (names, label, factor = 1, digits = 3) =>
  (expected, got) => {
    let most = 0;
    for (const name of names)
      expected.forEach(({ [name]: { data } }, sample) => {
        const other = got[sample][name].data;
        data.forEach((value, i) => {
          most = Math.max(most, Math.abs(value - other[i]));
        });
      });
    return `${label} off by ${(most * factor).toFixed(digits)} at most`;
  };

const both =
  (...tasks) =>
  (expected, got) =>
    tasks.map((task) => task(expected, got)).join(', ');

const YUNET_STRIDES = [8, 16, 32];
const yunetOutputs = (kind) => YUNET_STRIDES.map((stride) => `${kind}_${stride}`);

/**
 * By name: the file under the material's `onnx`, what is bound, samples by input, and a figure of the model's task from the float
 * model's outputs and another's.
 */
export const MODELS = {
  mnist_8: {
    path: 'mnist_8/model.onnx',
    bind: [],
    calibrate: () =>
      named(
        'Input3',
        [0, 1, 2].map((set) => tensorFile('mnist_8', `test_data_set_${set}`, 'input_0.pb')),
      ),
    evaluate: () =>
      named(
        'Input3',
        [0, 1, 2].flatMap((set) => {
          const image = tensorFile('mnist_8', `test_data_set_${set}`, 'input_0.pb');
          return [shift(image, 1, 2), shift(image, -2, -1)];
        }),
      ),
    task: sameTop('Plus214_Output_0'),
  },
  super_resolution_10: {
    path: 'super_resolution_10/model.onnx',
    bind: ['batch_size=1'],
    calibrate: () => named('input', flips(tensorFile('super_resolution_10', 'test_data_set_0', 'input_0.pb'))),
    evaluate: () => named('input', [tensorFile('super_resolution_10', 'test_data_set_0', 'input_0.pb')]),
    task: largest(['output'], 'grey', 255, 1),
  },
  ultraface: {
    path: 'ultraface/version-RFB-320.onnx',
    bind: [],
    calibrate: () => named('input', crops(240, 320, TRAINING_PLACES, 255 / 128, -127 / 128)),
    evaluate: () => named('input', crops(240, 320, HELD_OUT_PLACES, 255 / 128, -127 / 128)),
    task: both(largest(['scores'], 'scores'), largest(['boxes'], 'boxes (px)', 320, 2)),
  },
  yunet: {
    path: 'yunet/yunet_n_320_320.onnx',
    bind: [],
    calibrate: () => named('input', crops(320, 320, TRAINING_PLACES, 255, 0)),
    evaluate: () => named('input', crops(320, 320, HELD_OUT_PLACES, 255, 0)),
    task: both(
      largest(yunetOutputs('cls'), 'cls'),
      largest(yunetOutputs('obj'), 'obj', 1, 4),
      largest(yunetOutputs('bbox'), 'boxes (strides)'),
    ),
  },
  'basic-pitch': {
    path: 'basic-pitch/nmp.onnx',
    bind: ['unk__749=1'],
    calibrate: () =>
      named('serving_default_input_2:0', [
        ...[0, 2, 6].map(speechWindow),
        chords([220, 277.2, 329.6]),
        chords([523.3, 659.3]),
        chords([110]),
      ]),
    evaluate: () =>
      named('serving_default_input_2:0', [
        readNpz(join(material, 'basic-pitch', 'nmp.a440.npz'))['in_serving_default_input_2:0'],
        speechWindow(4),
        chords([196, 246.9, 392]),
      ]),
    task: both(
      overlap(['StatefulPartitionedCall:1'], 0.3, 'notes'),
      overlap(['StatefulPartitionedCall:2'], 0.5, 'onsets'),
    ),
  },
  'ppocr-det': {
    path: 'ppocr-v4/ch_PP-OCRv4_det_infer.onnx',
    bind: ['x=1x3x320x320'],
    calibrate: () => named('x', flips(readNpz(join(material, 'ppocr-v4', 'det.two-lines.npz')).in_x)),
    evaluate: () => named('x', [readNpz(join(material, 'ppocr-v4', 'det.two-lines.npz')).in_x]),
    task: overlap(['sigmoid_0.tmp_0'], 0.3, 'text'),
  },
  'ppocr-cls': {
    path: 'ppocr-v4/ch_ppocr_mobile_v2.0_cls_infer.onnx',
    bind: ['x=1x3x48x192'],
    calibrate: () => named('x', flips(readNpz(join(material, 'ppocr-v4', 'cls.ocr-line.npz')).in_x)),
    evaluate: () => {
      const line = readNpz(join(material, 'ppocr-v4', 'cls.ocr-line.npz')).in_x;
      return named('x', [line, shift(line, 6, 30), shift(line, -8, -50), ...flips(shift(line, 4, -20))]);
    },
    task: both(
      sameTop('save_infer_model/scale_0.tmp_1'),
      largest(['save_infer_model/scale_0.tmp_1'], 'probability', 1, 4),
    ),
  },
  'silero-vad': {
    path: 'silero-vad/silero_vad_16k_op15.onnx',
    bind: ['batch=1', 'sequence=576'],
    calibrate: () => speechFrames((frame) => frame % 8 === 0),
    evaluate: () => speechFrames((frame) => frame % 8 === 4),
    task: largest(['output'], 'probability', 1, 4),
  },
  'silero-vad-sequence': {
    path: 'silero-vad/silero_vad_16k_sequence.onnx',
    bind: ['sequence_length=1'],
    calibrate: async () => asSequence(await MODELS['silero-vad'].calibrate()),
    evaluate: async () => asSequence(await MODELS['silero-vad'].evaluate()),
    task: largest(['speech_probs'], 'probability', 1, 4),
  },
};

/** The same frames for the variant whose states are two inputs. */
function asSequence(feeds) {
  return feeds.map(({ input, state }) => ({
    input,
    h: f32([1, 1, 128], state.data.subarray(0, 128)),
    c: f32([1, 1, 128], state.data.subarray(128)),
  }));
}

const DESCR = { f32: '<f4', i64: '<i8' };

/** Samples as NumPy's np.savez writes them: an array per input, samples along a first axis of its own. */
export function writeNpz(path, feeds) {
  const locals = [];
  const entries = [];
  let at = 0;
  for (const name of Object.keys(feeds[0])) {
    const { dtype, shape } = feeds[0][name];
    const dims = [feeds.length, ...shape].map((dim) => `${dim},`).join(' ');
    const header = `{'descr': '${DESCR[dtype]}', 'fortran_order': False, 'shape': (${dims}), }`;
    const head = Buffer.from(`\x93NUMPY\x01\x00\x00\x00${header}\n`, 'latin1');
    head.writeUInt16LE(header.length + 1, 8);
    const parts = feeds.map(({ [name]: { data } }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    const bytes = Buffer.concat([head, ...parts]);
    const entry = Buffer.from(`${name}.npy`);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt32LE(crc32(bytes), 10);
    common.writeUInt32LE(bytes.length, 14);
    common.writeUInt32LE(bytes.length, 18);
    common.writeUInt16LE(entry.length, 22);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(at, 10);
    locals.push(Buffer.from('PK\x03\x04'), common, entry, bytes);
    entries.push(Buffer.from('PK\x01\x02\x14\x00'), common, tail, entry);
    at += 4 + common.length + entry.length + bytes.length;
  }
  const directory = Buffer.concat(entries);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06', 'latin1');
  end.writeUInt16LE(Object.keys(feeds[0]).length, 8);
  end.writeUInt16LE(Object.keys(feeds[0]).length, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(at, 16);
  writeFileSync(path, Buffer.concat([...locals, directory, end]));
}
